//! Texts that others wrote, as they are shown: in a log line, an error, a comment of SQL, on a terminal.
//!
//! A name or a message may hold line breaks, by which it forges a line of the log or ends a comment, escape sequences, by which it writes over
//! what a terminal shows, and marks that reverse the order of letters (Unicode TR 36, "bidirectional text spoofing").

use std::fmt::{self, Write};

/// Characters of a name, a tag or a value that are shown; PostgreSQL's names have at most 63 bytes.
const NAME: usize = 200;
/// Characters of a message that are shown: Redis hands out errors of 10 MB.
const MESSAGE: usize = 2_000;

/// A text on one line, with every character that is not seen as itself written as its number (`\u{a}`), and cut where it gets long.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    text: &'a str,
    most: usize,
}

/// A name, a tag, a value.
pub fn plain(text: &str) -> Plain<'_> {
    Plain { text, most: NAME }
}

/// What a server said.
pub fn message(text: &str) -> Plain<'_> {
    Plain { text, most: MESSAGE }
}

/// A sentence of ours with texts of others in it.
pub fn whole(text: &str) -> Plain<'_> {
    Plain { text, most: usize::MAX }
}

/// Several lines of our own, in which whatever else is hidden is shown: as JSON escapes it, so that JSON stays JSON.
pub fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => out.push(character),
            hidden if is_hidden(hidden) => out.push_str(&format!("\\u{:04x}", u32::from(hidden))),
            other => out.push(other),
        }
    }
    out
}

/// Would it move the cursor, end the line, or change the order of what stands around it?
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.text.chars();
        for character in characters.by_ref().take(self.most) {
            match is_hidden(character) {
                true => write!(f, "{}", character.escape_unicode())?,
                false => f.write_char(character)?,
            }
        }
        // Counted in bytes: to count characters means to read all of them.
        match characters.as_str().len() {
            0 => Ok(()),
            more => write!(f, "... ({more} bytes more)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_hidden() {
        let shown = |text: &str| plain(text).to_string();
        for (text, wanted) in [
            ("shop.\"Äpfel\"", "shop.\"Äpfel\""),
            ("a\n2026 INFO forged", "a\\u{a}2026 INFO forged"),
            ("\u{1b}[2J\r\t\u{7f}", "\\u{1b}[2J\\u{d}\\u{9}\\u{7f}"),
            ("\u{85}\u{2028}\u{202e}", "\\u{85}\\u{2028}\\u{202e}"),
        ] {
            assert_eq!(shown(text), wanted);
        }
        assert_eq!(shown(&"ä".repeat(NAME + 5)), format!("{}... (10 bytes more)", "ä".repeat(NAME)));
    }
}
