//! What is written is read again, however it is cut.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Something we write, and what reading it yields.
fn written() -> impl Strategy<Value = (Vec<u8>, Whole)> {
    let stream = || (1..=MAX_WINDOW).prop_map(StreamId::new);
    let other = |frame: Frame<'_>| Whole::Other(format!("{frame:?}"));
    let put = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    prop_oneof![
        (stream(), vec(any::<u8>(), 0..300), any::<bool>()).prop_map(|(stream, bytes, end)| {
            let out = [&data_head(stream, bytes.len(), end)[..], &bytes].concat();
            let flow = bytes.len() as u32;
            let whole = Whole::Data {
                stream: stream.get(),
                size: DataSize { flow, padding: 0 },
                bytes,
                end,
            };
            (out, whole)
        }),
        (
            stream(),
            vec(any::<u8>(), 0..300),
            any::<bool>(),
            40..400usize
        )
            .prop_map(move |(stream, block, end, most)| {
                let out = put(&|out| put_headers(out, stream, &block, end, most));
                let stream = stream.get();
                (out, Whole::Headers { stream, block, end })
            }),
        (stream(), any::<u32>()).prop_map(move |(stream, code)| {
            let code = Code(code);
            let out = put(&|out| put_reset(out, stream, code));
            (out, other(Frame::Reset { stream, code }))
        }),
        (stream(), 1..=MAX_WINDOW).prop_map(move |(stream, increment)| {
            let out = put(&|out| put_window(out, stream, increment));
            (out, other(Frame::Window { stream, increment }))
        }),
        (any::<bool>(), any::<[u8; 8]>()).prop_map(move |(ack, payload)| {
            let out = put(&|out| put_ping(out, ack, payload));
            (out, other(Frame::Ping { ack, payload }))
        }),
        (stream(), any::<u32>(), ".{0,300}").prop_map(move |(last, code, debug)| {
            let code = Code(code);
            let out = put(&|out| put_goaway(out, last, code, &debug));
            (out, other(Frame::GoAway { last, code }))
        }),
        (any::<u32>(), 0..=MAX_WINDOW).prop_map(move |(streams, window)| {
            let entries = [
                (setting::HEADER_TABLE_SIZE, 0),
                (setting::MAX_CONCURRENT_STREAMS, streams),
                (setting::INITIAL_WINDOW_SIZE, window),
            ];
            let out = put(&|out| put_settings(out, &entries));
            let settings = Settings {
                header_table_size: Some(0),
                max_concurrent_streams: Some(streams),
                initial_window_size: Some(window),
                ..Settings::default()
            };
            (out, other(Frame::Settings(settings)))
        }),
        Just((put(&put_settings_ack), other(Frame::SettingsAck))),
    ]
}

/// Cuts `bytes` into pieces of the given lengths, again and again.
fn pieces<'a>(bytes: &'a [u8], lens: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for len in lens.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, more) = rest.split_at((*len).min(rest.len()));
        pieces.push(piece);
        rest = more;
    }
    pieces
}

proptest! {
    #[test]
    fn what_is_written_is_read_in_any_pieces(
        frames in vec(written(), 0..20),
        lens in vec(1..50usize, 1..20),
    ) {
        let (bytes, want): (Vec<_>, Vec<_>) = frames.into_iter().unzip();
        let bytes = bytes.concat();
        prop_assert_eq!(feed(pieces(&bytes, &lens)), (want.clone(), None));
        prop_assert_eq!(feed([&bytes[..]]), (want, None));
    }

    /// Frames with any type, flags and payload: the same frames and the same error, however cut.
    #[test]
    fn pieces_do_not_matter(
        frames in vec((0..11u8, any::<u8>(), 0..4u32, vec(any::<u8>(), 0..40)), 0..20),
        lens in vec(1..30usize, 1..20),
    ) {
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload))
            .collect();
        prop_assert_eq!(feed(pieces(&bytes, &lens)), feed([&bytes[..]]));
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in vec(any::<u8>(), 0..500), lens in vec(1..30usize, 1..9)) {
        prop_assert_eq!(feed(pieces(&bytes, &lens)), feed([&bytes[..]]));
    }
}
