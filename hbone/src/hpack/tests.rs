//! The examples of RFC 7541, appendix C, and everything a block may get wrong.

use http::StatusCode;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type Fields = Vec<(String, String)>;

/// A block in hexadecimal, its fields, and the table's size after it.
type Example<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

/// Bytes from hexadecimal digits; spaces are for readers.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|d| (d[0] * 16 + d[1]) as u8).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Broken> {
    let mut fields = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
    Ok(fields)
}

/// Decodes blocks one after the other, and checks the fields and the table's size after each.
fn check(blocks: &[Example<'_>]) {
    let mut decoder = Decoder::new();
    for (block, want, size) in blocks {
        let fields = decode(&mut decoder, &hex(block)).unwrap_or_else(|e| panic!("{block}: {e}"));
        let fields: Vec<_> = fields.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(
            (&fields[..], decoder.table.size()),
            (*want, *size),
            "{block}"
        );
    }
}

#[test]
fn c1_integers() {
    let rows = [
        ("0a", 5, 10),
        ("1f 9a 0a", 5, 1337),
        ("2a", 8, 42),
        ("ff 00", 8, 255),
        ("ff 80 80 80 00", 8, 255),
        ("ff ff ff ff 7f", 8, 255 + (1 << 28) - 1),
    ];
    for (bytes, bits, value) in rows {
        let bytes = hex(bytes);
        let mut rest = &bytes[..];
        assert_eq!(integer(&mut rest, bits), Ok(value));
        assert!(rest.is_empty());
    }
    for bytes in ["", "1f", "1f 9a", "ff 80 80 80 80 00", "ff ff ff ff ff 7f"] {
        assert!(integer(&mut &hex(bytes)[..], 5).is_err(), "{bytes}");
    }
}

#[test]
fn c2_single_fields() {
    let custom = ("custom-key", "custom-header");
    check(&[(
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        &[custom],
        55,
    )]);
    check(&[(
        "040c 2f73 616d 706c 652f 7061 7468",
        &[(":path", "/sample/path")],
        0,
    )]);
    check(&[(
        "1008 7061 7373 776f 7264 0673 6563 7265 74",
        &[("password", "secret")],
        0,
    )]);
    check(&[("82", &[(":method", "GET")], 0)]);
}

const FIRST: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
];
const SECOND: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const THIRD: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];

#[test]
fn c3_requests() {
    check(&[
        (
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            FIRST,
            57,
        ),
        ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND, 110),
        (
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            THIRD,
            164,
        ),
    ]);
}

#[test]
fn c4_requests_compressed() {
    check(&[
        ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST, 57),
        ("8286 84be 5886 a8eb 1064 9cbf", SECOND, 110),
        (
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            THIRD,
            164,
        ),
    ]);
}

const MOVED: &[(&str, &str)] = &[
    (":status", "302"),
    ("cache-control", "private"),
    ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
    ("location", "https://www.example.com"),
];
const MOVED_AGAIN: &[(&str, &str)] = &[
    (":status", "307"),
    ("cache-control", "private"),
    ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
    ("location", "https://www.example.com"),
];
const FOUND: &[(&str, &str)] = &[
    (":status", "200"),
    ("cache-control", "private"),
    ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
    ("location", "https://www.example.com"),
    ("content-encoding", "gzip"),
    (
        "set-cookie",
        "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    ),
];

/// The RFC's table of 256 bytes is set by an update before the first block.
#[test]
fn c5_answers_that_evict() {
    check(&[
        (
            "3fe101 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 \
             2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 \
             2e63 6f6d",
            MOVED,
            222,
        ),
        ("4803 3330 37c1 c0bf", MOVED_AGAIN, 222),
        (
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 \
             5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 \
             5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
            FOUND,
            215,
        ),
    ]);
}

#[test]
fn c6_answers_that_evict_compressed() {
    check(&[
        (
            "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 \
             2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            MOVED,
            222,
        ),
        ("4883 640e ffc1 c0bf", MOVED_AGAIN, 222),
        (
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad \
             94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 \
             65c0 03ed 4ee5 b106 3d50 07",
            FOUND,
            215,
        ),
    ]);
}

#[test]
fn what_a_block_must_not_say() {
    let rows = [
        ("index 0", "80"),
        ("index beyond both tables", "be"),
        ("index far beyond", "ff ff ff ff 7f"),
        ("name beyond both tables", "7e 01 61"),
        ("index too long", "ff 80 80 80 80 01"),
        ("index cut off", "ff"),
        ("name without length", "00"),
        ("name cut off", "00 02 61"),
        ("no value", "00 01 61"),
        ("value cut off", "00 01 61 02 61"),
        ("value far longer", "00 01 61 7f ff ff ff 7f"),
        ("update above the limit", "3f e2 1f"),
        ("update after a field", "82 20"),
        ("three updates", "20 20 20"),
        ("update cut off", "3f"),
        ("EOS", "00 01 61 84 ff ff ff ff"),
        ("EOS after a symbol", "00 01 61 85 1f ff ff ff ff"),
        ("padding of 11 bits", "00 01 61 82 1f ff"),
        ("padding of 8 bits", "00 01 61 82 f8 ff"),
        ("padding of zeros", "00 01 61 81 18"),
        ("padding with a zero", "00 01 61 81 1e"),
        ("a piece of a code", "00 01 61 82 1f fe"),
    ];
    for (what, block) in rows {
        let got = decode(&mut Decoder::new(), &hex(block));
        assert_eq!(
            got.map_err(|e| e.code),
            Err(Code::COMPRESSION_ERROR),
            "{what}"
        );
    }
    let fields = |block| decode(&mut Decoder::new(), &hex(block)).map(|f| f.len());
    // The name "a" with padding of 3, 0 and no bits, and nothing at all.
    for block in [
        "00 81 1f 00",
        "00 81 fc 00",
        "00 85 18 c6 31 8c 63 00",
        "00 80 80",
    ] {
        assert_eq!(fields(block), Ok(1), "{block}");
    }
    assert_eq!(
        (fields(""), fields("20 3fe11f"), fields("20 20 82")),
        (Ok(0), Ok(0), Ok(1))
    );
}

#[test]
fn a_lower_limit_must_be_taken_up() {
    let keep = hex("40 01 61 01 62");
    let mut decoder = Decoder::new();
    decode(&mut decoder, &keep).unwrap();
    decoder.set_limit(0);
    assert!(decode(&mut decoder, &keep).is_err(), "no update");

    let mut decoder = Decoder::new();
    decode(&mut decoder, &keep).unwrap();
    decoder.set_limit(0);
    assert!(
        decode(&mut decoder, &hex("21 82")).is_err(),
        "not low enough"
    );

    let mut decoder = Decoder::new();
    decode(&mut decoder, &keep).unwrap();
    assert_eq!(decoder.table.size(), 34);
    decoder.set_limit(0);
    let again = [hex("20"), keep.clone()].concat();
    assert_eq!(decode(&mut decoder, &again).unwrap().len(), 1);
    assert_eq!((decoder.table.size(), decoder.table.capacity()), (0, 0));
    assert_eq!(decode(&mut decoder, &keep).unwrap().len(), 1);
    assert!(
        decode(&mut decoder, &hex("be")).is_err(),
        "nothing was kept"
    );
    // Raised again, it stays empty until the peer says so.
    decoder.set_limit(usize::MAX);
    decode(&mut decoder, &keep).unwrap();
    assert_eq!(decoder.table.size(), 0);
    decode(&mut decoder, &[hex("3fe11f"), keep].concat()).unwrap();
    assert_eq!(decoder.table.size(), 34);
}

#[test]
fn one_that_never_fits_empties_the_table() {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.table.capacity(), 0);
    decode(&mut decoder, &hex("40 01 61 01 62")).unwrap();
    // Its name comes from the entry that it drives out.
    let mut block = hex("7e 7f e1 1f");
    block.resize(block.len() + 127 + 0xfe1, b'x');
    let fields = decode(&mut decoder, &block).unwrap();
    assert_eq!((&*fields[0].0, fields[0].1.len()), ("a", 127 + 0xfe1));
    assert_eq!((decoder.table.size(), decoder.table.capacity()), (0, 0));
}

#[test]
fn all_bytes_compressed() {
    let all: Vec<u8> = (0..=255).collect();
    let (text, mut out) = (huffman::encode(&all), Vec::new());
    assert_eq!(huffman::decode(&text, &mut out), Ok(()));
    assert_eq!(out, all);
}

#[test]
fn what_we_write() {
    let mut block = Encoder::new(64);
    block.status(StatusCode::OK);
    block.status(StatusCode::FORBIDDEN);
    block.indexed_name(index::AUTHORITY, "10.1.2.3:80");
    block.field("x", &*"y".repeat(126));
    block.field("x", &*"y".repeat(127));
    block.field("x", &*"y".repeat(300));
    let block = block.finish();
    assert_eq!(block[..6], hex("20 88 08 03 34 30"));
    let fields = decode(&mut Decoder::new(), &block).unwrap();
    let lens: Vec<_> = fields.iter().map(|(n, v)| (&**n, v.len())).collect();
    let want = [
        (":status", 3),
        (":status", 3),
        (":authority", 11),
        ("x", 126),
        ("x", 127),
        ("x", 300),
    ];
    assert_eq!(lens, want);
    assert_eq!((&*fields[1].1, &*fields[2].1), ("403", "10.1.2.3:80"));
    // Whatever table size this peer had announced, it is content.
    let mut decoder = Decoder::new();
    decoder.set_limit(0);
    assert!(decode(&mut decoder, &block).is_ok());
}

proptest! {
    #[test]
    fn compressed_text_is_read(text in vec(any::<u8>(), 0..200)) {
        let mut out = Vec::new();
        prop_assert_eq!(huffman::decode(&huffman::encode(&text), &mut out), Ok(()));
        prop_assert_eq!(out, text);
    }

    #[test]
    fn compressed_text_has_one_form(text in vec(any::<u8>(), 0..40)) {
        let mut out = Vec::new();
        if huffman::decode(&text, &mut out).is_ok() {
            prop_assert_eq!(huffman::encode(&out), text);
        }
    }

    #[test]
    fn written_text_is_read(values in vec(".{0,400}", 0..5)) {
        let mut block = Encoder::new(0);
        for value in &values {
            block.field("name", &**value);
        }
        let fields = decode(&mut Decoder::new(), &block.finish()).unwrap();
        prop_assert_eq!(fields.into_iter().map(|(_, v)| v).collect::<Vec<_>>(), values);
    }

    #[test]
    fn any_blocks_are_fields_or_an_error(blocks in vec(vec(any::<u8>(), 0..100), 1..5)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            let read = decode(&mut decoder, &block);
            let table = &decoder.table;
            prop_assert!(table.size() <= table.max() && table.max() <= DEFAULT_TABLE);
            if read.is_err() {
                break;
            }
        }
    }
}
