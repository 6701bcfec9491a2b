//! One event is one line of text: what peers and objects say cannot begin another.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Writes control characters of events as escapes. Relies on it that an event is written in one piece.
#[derive(Clone, Debug)]
pub(super) struct OneLine<W>(pub(super) W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }

    fn make_writer_for(&'w self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        OneLine(self.0.make_writer_for(meta))
    }
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match escaped(event) {
            None => self.0.write_all(event)?,
            Some(line) => self.0.write_all(line.as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The event as one line, where it is not one yet.
fn escaped(event: &[u8]) -> Option<String> {
    let line = event.strip_suffix(b"\n").unwrap_or(event);
    // As UTF-8 the control characters above ASCII begin with 0xC2, as few others do.
    let suspicious = |byte: &u8| byte.is_ascii_control() || *byte == 0xC2;
    if !line.iter().any(suspicious) {
        return None;
    }
    let mut text = String::with_capacity(event.len() + 16);
    for character in String::from_utf8_lossy(line).chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text.push('\n');
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_the_rest_is_as_it_was() {
        for (event, line) in [
            ("plain\n", None),
            ("größer\n", None),
            ("two\nlines\n", Some("two\\nlines\n")),
            ("\r\t\u{1b}[31m\n", Some("\\r\\t\\u{1b}[31m\n")),
            ("next\u{85}line\n", Some("next\\u{85}line\n")),
            ("10 £\n", Some("10 £\n")),
        ] {
            assert_eq!(escaped(event.as_bytes()).as_deref(), line, "{event:?}");
        }
    }
}
