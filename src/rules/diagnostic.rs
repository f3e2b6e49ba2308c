//! What is wrong with a rule file, where, and what to do: one message per problem, with the line and a caret.

use crate::plain::whole;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A rule file as read: diagnostics quote it.
#[derive(Debug)]
pub struct Source {
    /// Its path as the user gave it.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// It is reached by a link out of its directory: who may make links here could have any file shown that the daemon can read.
    pub is_elsewhere: bool,
}

/// A place in a [`Source`]; line and column count from 1, columns in characters.
#[derive(Clone, Debug)]
pub struct Place {
    /// Which file.
    pub source: Arc<Source>,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
    /// Characters to underline.
    pub width: usize,
}

/// Does it stop the rule set from being used?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The set is refused.
    Error,
    /// The set is used, and people are told.
    Warning,
}

/// One problem. `code` is stable: scripts may match on it.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Stable name of the kind of problem.
    pub code: &'static str,
    /// Where.
    pub place: Place,
    /// What happened.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Place {
    /// This place, `characters` further right, `width` wide.
    pub fn shifted(&self, characters: usize, width: usize) -> Place {
        Place { column: self.column + characters, width: width.max(1), ..self.clone() }
    }

    /// The text of its line.
    pub fn line_text(&self) -> &str {
        self.source.text.lines().nth(self.line.saturating_sub(1)).unwrap_or_default()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// An error here.
    pub fn error(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Error, code, place: self.clone(), message: message.into(), help: None }
    }

    /// A warning here.
    pub fn warning(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..self.error(code, message) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path().display(), self.line, self.column)
    }
}

impl Diagnostic {
    /// With advice.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    /// With "did you mean" when one of `known` is near, else with the whole list.
    pub fn suggest<'a>(self, wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Diagnostic {
        let known: Vec<&str> = known.into_iter().collect();
        match nearest(wrong, &known) {
            Some(near) => self.help(format!("did you mean `{near}`?")),
            None if known.is_empty() => self,
            None => self.help(format!("known: {}", known.join(", "))),
        }
    }
}

/// One paragraph per problem.
pub fn list<'a>(problems: impl IntoIterator<Item = &'a Diagnostic>) -> String {
    problems.into_iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        if self.place.source.is_elsewhere {
            // Also what is quoted in the sentence stands in that file.
            let sentence: String = self.message.split('`').step_by(2).collect::<Vec<_>>().join("`...`");
            writeln!(f, "{severity}[{}]: {}", self.code, whole(&masked_urls(&sentence)))?;
            return write!(
                f,
                " --> {} (a link out of its directory: nothing of it is shown)",
                whole(&self.place.to_string())
            );
        }
        let line = self.place.line.to_string();
        let margin = " ".repeat(line.len());
        // A tab stays a tab under the line, so that the caret stands where the eye looks.
        let masked = masked(&printable(self.place.line_text()));
        let (text, column) = excerpt(&masked, self.place.column);
        let before = text.chars().take(column.saturating_sub(1));
        let indent: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let room = text.chars().count().saturating_sub(column - 1).max(1);
        let caret = "^".repeat(self.place.width.clamp(1, room));
        writeln!(f, "{severity}[{}]: {}", self.code, whole(&masked_urls(&self.message)))?;
        writeln!(f, "{margin}--> {}", whole(&masked_urls(&self.place.to_string())))?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{line} | {text}")?;
        write!(f, "{margin} | {indent}{caret}")?;
        match &self.help {
            Some(help) => write!(f, "\n{margin} = help: {}", whole(&masked_urls(help))),
            None => Ok(()),
        }
    }
}

/// The part of a long line around a column, and where the column is in it.
fn excerpt(text: &str, column: usize) -> (String, usize) {
    const WIDTH: usize = 160;
    const BEFORE: usize = 80;
    let first = match text.chars().count() > WIDTH {
        true => column.saturating_sub(BEFORE),
        false => 0,
    };
    (text.chars().skip(first).take(WIDTH).collect(), column - first.min(column - 1))
}

/// Control characters of a rule file must not reach a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// A URL may be written with its password, and messages go to the log, to `/status` and to whoever is asked for help. Each
/// character is masked by one, so that the caret stays where it belongs.
fn masked(text: &str) -> String {
    let mut spans = spans_of_urls(text);
    // All that a URL has before its host, blanks that do not belong there included. `<@table>` is no URL.
    let is_placeholder = |at: usize| text.get(..at).is_some_and(|part| part.ends_with('<'));
    let last = text.char_indices().rfind(|(at, c)| *c == '@' && !is_placeholder(*at));
    if let (Some(colon), Some((at, _))) = (text.find(":/").map(|at| at + 1), last)
        && colon < at
    {
        spans.push((colon, at));
    }
    let lower: String = text.chars().map(|c| c.to_ascii_lowercase()).collect();
    // A key that says it holds a secret.
    for word in ["password", "passwd", "secret", "token"] {
        let value = lower.find(word).and_then(|at| Some(at + lower.get(at..)?.find([':', '='])? + 1));
        if let Some(value) = value {
            let end = text.get(value..).and_then(|rest| rest.find([',', '}'])).map_or(text.len(), |end| value + end);
            let first = text.get(value..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
            spans.push((value + first, end));
        }
    }
    hidden(text, &spans)
}

/// The same for a sentence, in which such a word may well stand: only what looks like a URL is masked.
pub fn masked_urls(text: &str) -> String {
    hidden(text, &spans_of_urls(text))
}

fn hidden(text: &str, spans: &[(usize, usize)]) -> String {
    let is_in = |at: usize| spans.iter().any(|(from, to)| (*from..*to).contains(&at));
    text.char_indices().map(|(at, c)| if is_in(at) && c != '/' { '*' } else { c }).collect()
}

/// Where something may be a password, in bytes.
fn spans_of_urls(text: &str) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    let mut begin = 0;
    for word in text.split(|c: char| c.is_whitespace() || "\"'`[],".contains(c)) {
        // `user:password@host`, with or without a scheme: what stands between the first colon and the last `@`.
        if let Some((before, _)) = word.rsplit_once('@').filter(|(before, _)| !before.ends_with('<'))
            && let Some(colon) = before.find(':')
        {
            spans.push((begin + colon + 1, begin + before.len()));
        }
        // A URL whose host was forgotten: `redis://user:password`, or `redis://:password`. A port is a number.
        if let Some(at) = word.find(":/") {
            let start = at + word.get(at..).map_or(0, |rest| rest.len() - rest.trim_start_matches([':', '/']).len());
            // `://:password` has lost its colon to the line above.
            let start = if word.get(..start).is_some_and(|head| head.ends_with("/:")) { start - 1 } else { start };
            let start = word.rfind('@').map_or(start, |at| start.max(at + 1));
            let authority =
                word.get(start..).unwrap_or_default().split(['/', '?', '#', '}']).next().unwrap_or_default();
            let mut place = start;
            for (number, part) in authority.split(':').enumerate() {
                if number > 0 && !part.bytes().all(|byte| byte.is_ascii_digit()) {
                    spans.push((begin + place, begin + place + part.len()));
                }
                place += part.len() + 1;
            }
        }
        // `?password=...`, `&pass=...`.
        for (at, _) in word.match_indices("pass") {
            if let Some(value) = word.get(at..).and_then(|rest| rest.find('=')).map(|found| at + found + 1) {
                let end =
                    word.get(value..).and_then(|rest| rest.find(['&', '}'])).map_or(word.len(), |end| value + end);
                spans.push((begin + value, begin + end));
            }
        }
        begin += word.len();
        begin += text.get(begin..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
    }
    spans
}

/// The candidate within a third of the word's length, rounded up: `tabel` is two edits from `table`.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let limit = word.chars().count().div_ceil(3);
    let scored = candidates.iter().map(|candidate| (distance(word, candidate), *candidate));
    scored.filter(|(edits, _)| *edits <= limit).min_by_key(|(edits, _)| *edits).map(|(_, candidate)| candidate)
}

/// Edits between two words (Levenshtein), without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            let cost = (diagonal + usize::from(x != *y)).min(left + 1).min(above + 1);
            diagonal = *above;
            left = cost;
            next.push(cost);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words() {
        assert_eq!(nearest("tagz", &["table", "tags"]), Some("tags"));
        assert_eq!(nearest("Pyton", &["python", "php"]), Some("python"));
        assert_eq!(nearest("x", &["caches"]), None);
    }

    #[test]
    fn passwords_are_masked() {
        for (line, shown) in [
            ("url: \"redis://u:p@ss@h/0\"", "url: \"redis://******@h/0\""),
            ("{ url: redis:/:hidden@x, dialect: keys }", "{ url: redis:/*******@x, dialect: keys }"),
            ("url: redis://:a b@h", "url: redis://****@h"),
            ("{url: u:pw@host:6379}", "{url: u:**@host:6379}"),
            ("url: redis://u:pw", "url: redis://u:**"),
            ("url: redis://:pw", "url: redis://:**"),
            ("url: redis://h:6379/1", "url: redis://h:6379/1"),
            ("url: redis://u:p%40h:6379", "url: redis://u:*****:6379"),
            ("redis+unix://h?user=u&pass=pw, x", "redis+unix://h?user=u&pass=**, x"),
            ("style: \"u:${S}pw@h\"", "style: \"u:******@h\""),
            ("[\"u:p@w@h\"]", "[\"u:***@h\"]"),
            ("  password: hunter2, x: 1", "  password: *******, x: 1"),
            ("url: ${URL} # mail me@h", "url: ${URL} # mail me@h"),
            ("- \"user:<@table>:<id>\"", "- \"user:<@table>:<id>\""),
        ] {
            assert_eq!(masked(line), shown);
        }
    }

    #[test]
    fn caret_stands_under_the_word() {
        let source = Arc::new(Source { path: "r.yaml".into(), text: "a: 1\n\tb: oops\n".into(), is_elsewhere: false });
        let place = Place { source, line: 2, column: 5, width: 4 };
        let shown = place.error("type", "no").help("do").to_string();
        let long = Arc::new(Source {
            path: "r.yaml".into(),
            text: format!("{}b{}", "a".repeat(500), "c".repeat(500)),
            is_elsewhere: false,
        });
        let far = Place { source: long, line: 1, column: 501, width: 1 }.error("type", "no").to_string();
        let lines: Vec<&str> = far.lines().collect();
        assert_eq!(lines[3].find('b'), lines[4].find('^'), "{far}");
        assert!(far.len() < 600, "{far}");
        assert_eq!(shown, "error[type]: no\n --> r.yaml:2:5\n  |\n2 | \tb: oops\n  | \t   ^^^^\n  = help: do");
    }
}
