//! The log on stderr: what others make us say must not fill a disk, forge a line, or stop the loop.
//!
//! * A place of the program writes a hundred lines at once and ten a second; what exceeds that is counted, and told once a second ([`tell_lost`]).
//! * Lines go through a thread of their own: a pipe that nobody reads loses lines, and holds up nothing.
//! * Within an entry, what follows a line break is indented: no entry but ours begins at the left.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;
use crate::plain::is_hidden;

/// Lines of one place of the program that are written at once, ...
const BURST: f64 = 100.0;
/// ... and each second.
const RATE: f64 = 10.0;
/// Lines that wait for whoever reads stderr.
const WAITING: usize = 1_024;
/// How long the last words may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of an entry.
const LONGEST: usize = 64 << 10;

static PLACES: LazyLock<Mutex<HashMap<(&'static str, u32), Place>>> = LazyLock::new(Mutex::default);
static LOST: AtomicU64 = AtomicU64::new(0);
static UNREAD: Mutex<Option<ErrorCounter>> = Mutex::new(None);

/// A place of the program.
struct Place {
    /// Lines that it may write now.
    left: f64,
    since: Instant,
    lost: u64,
}

/// Begins to write; what waits is written when the guard is dropped, or given up after a second.
pub fn start(format: LogFormat) -> WorkerGuard {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let (out, guard) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING).finish(io::stderr());
    *UNREAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(out.error_counter());
    let colours = io::stderr().is_terminal();
    let log = tracing_subscriber::fmt::layer().with_target(false).with_ansi(colours);
    let entries = move || Entries { out: out.clone(), colours };
    let registry = tracing_subscriber::registry().with(filter).with(Limit);
    // Under systemd the journal stamps the time itself.
    match (format, std::env::var_os("JOURNAL_STREAM").is_some()) {
        // There, line breaks are escaped by the format.
        (LogFormat::Json, _) => registry.with(log.json().flatten_event(true).with_writer(entries)).init(),
        (LogFormat::Text, true) => registry.with(log.without_time().with_writer(entries)).init(),
        (LogFormat::Text, false) => registry.with(log.with_writer(entries)).init(),
    }
    guard
}

/// Writes what has to be said at the end. A stderr that nobody reads, or whose disk is full, must not take the exit code away: it is given a second.
pub fn last_words(text: String) {
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = told.send(());
    });
    let _ = heard.recv_timeout(PATIENCE);
}

/// Lines that were not written since the program began.
pub fn lost() -> u64 {
    let unread = UNREAD.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, ErrorCounter::dropped_lines);
    LOST.load(Ordering::Relaxed) + unread as u64
}

/// Says which places have written more than they may since it was called last.
pub fn tell_lost() {
    let mut lost: Vec<_> = {
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = places.iter_mut().filter(|(_, place)| place.lost > 0);
        lost.map(|((file, line), place)| (*file, *line, std::mem::take(&mut place.lost))).collect()
    };
    lost.sort_unstable();
    for (file, line, count) in lost {
        tracing::warn!("{count} more lines like this were left out, more than {RATE} a second: those of {file}:{line}");
    }
}

/// Which entries are written.
struct Limit;

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for more than `info` wants all of it.
        let (Some(file), Some(line)) = (metadata.file(), metadata.line()) else { return true };
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry((file, line)).or_insert_with(|| Place { left: BURST, since: Instant::now(), lost: 0 });
        let may = place.takes(Instant::now());
        if !may {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        may
    }
}

impl Place {
    fn takes(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        (self.left, self.since) = ((self.left + passed * RATE).min(BURST), now);
        if self.left < 1.0 {
            self.lost += 1;
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// Takes whole entries.
struct Entries {
    out: NonBlocking,
    /// The colours of a terminal are escape sequences of our own; those within texts are escaped by the formatter.
    colours: bool,
}

impl Write for Entries {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(entry);
        self.out.write_all(shown(&text, self.colours).as_bytes())?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn shown(entry: &str, colours: bool) -> String {
    let (body, end) = entry.strip_suffix('\n').map_or((entry, ""), |body| (body, "\n"));
    let cut = (0..=body.len().min(LONGEST)).rev().find(|at| body.is_char_boundary(*at)).unwrap_or_default();
    let mut out = String::with_capacity(body.len() + 8);
    for character in body.get(..cut).unwrap_or_default().chars() {
        match character {
            '\n' => out.push_str("\n    "),
            '\t' => out.push('\t'),
            '\u{1b}' if colours => out.push(character),
            hidden if is_hidden(hidden) => out.extend(hidden.escape_unicode()),
            other => out.push(other),
        }
    }
    if cut < body.len() {
        out.push_str("...");
    }
    out + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_begins_at_the_left_and_nothing_else_does() {
        assert_eq!(
            shown("WARN a\n2026 INFO forged\r\u{1b}[2J\n", false),
            "WARN a\n    2026 INFO forged\\u{d}\\u{1b}[2J\n"
        );
        assert_eq!(shown("\u{1b}[2mWARN", true), "\u{1b}[2mWARN");
        assert_eq!(shown(&"ä".repeat(LONGEST), false).len(), LONGEST + 3);
    }

    #[test]
    fn a_place_that_writes_all_the_time_is_heard_now_and_then() {
        let begin = Instant::now();
        let mut place = Place { left: BURST, since: begin, lost: 0 };
        let written = (0..2_000).filter(|n| place.takes(begin + Duration::from_millis(*n))).count();
        assert_eq!((written, place.lost), (119, 1_881), "a hundred at once, ten a second for two seconds");
    }
}
