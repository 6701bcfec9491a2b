//! Texts that others wrote, as they may stand in a log line, a condition or an Event.

/// A text that others wrote, safe to print: one line, nothing that moves the cursor or turns the writing around, and no
/// longer than `max` bytes.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let before = line.len();
        if moves(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        if line.len() > max {
            line.truncate(before);
            break;
        }
    }
    line
}

/// Control characters, separators of lines, marks of direction.
fn moves(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_to_size_and_cannot_write_lines_of_its_own() {
        let forged = "failed\n2026-01-01T00:00:00Z INFO all is well\u{202e}\x1b[2K";
        assert_eq!(
            one_line(forged, 1024),
            "failed\\n2026-01-01T00:00:00Z INFO all is well\\u{202e}\\u{1b}[2K"
        );
        assert_eq!(one_line(&"ä".repeat(2000), 1024).len(), 1024);
        // Neither a character nor an escape is cut in two.
        assert_eq!(one_line("ab\n", 3), "ab");
        assert_eq!(one_line("abä", 3), "ab");
    }
}
