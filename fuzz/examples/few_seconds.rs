//! Fuzzing for a few seconds with the toolchain of the crate: no coverage, no sanitizer, only the corpus and mutations of it.
//!
//!     few_seconds [SECONDS [TARGET...]]     each target for so long (5), two at a time
//!     few_seconds --input TARGET HEX        one input again
//!
//! Each target runs in a process of its own, so a panic, an overflow of the stack, an abort and an input that takes too long are all found, and the
//! input is shown. `FUZZ_SEED` is the seed of the mutations.

use std::fmt::Write as _;
use std::fs::{File, read, read_dir};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use waltag_fuzz::{TARGETS, Target};

/// The same inputs in the same order, unless somebody wants others.
const SEED: u64 = 20_261_130;
/// An input that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest input that is made.
const LONGEST: usize = 4_096;
/// At once: what CI has.
const AT_ONCE: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--input", target, hex] => {
            let input = from_hex(hex).expect("hexadecimal digits");
            named(target).1(&input);
            println!("{target}: nothing happened");
            ExitCode::SUCCESS
        }
        ["--child", target, seconds, seed, current] => {
            let (seconds, seed) = (seconds.parse().expect("seconds"), seed.parse().expect("a seed"));
            let runs = fuzz(named(target), Duration::from_secs(seconds), seed, Path::new(current));
            println!("{runs}");
            ExitCode::SUCCESS
        }
        [] => all(5, &[]),
        [seconds, targets @ ..] => all(seconds.parse().expect("seconds"), targets),
    }
}

fn named(name: &str) -> Target {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    *target
        .unwrap_or_else(|| panic!("no target is called {name}; there are {}", TARGETS.map(|(name, _)| name).join(", ")))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A target at work.
struct Running {
    name: &'static str,
    child: Child,
    /// The input that it runs.
    current: PathBuf,
    since: Instant,
}

fn all(seconds: u64, wanted: &[&str]) -> ExitCode {
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    println!("fuzzing {seconds} s per target, FUZZ_SEED={seed}");
    for name in wanted {
        named(name);
    }
    let directory = std::env::temp_dir().join(format!("waltag-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for inputs");
    let mut waiting: Vec<Target> =
        TARGETS.iter().rev().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)).copied().collect();
    let (mut running, mut failed, count): (Vec<Running>, usize, usize) = (Vec::new(), 0, waiting.len());
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < AT_ONCE
            && let Some((name, _)) = waiting.pop()
        {
            running.push(start(name, seconds, seed, &directory));
        }
        std::thread::sleep(Duration::from_millis(20));
        running.retain_mut(|one| match ended(one, seconds) {
            None => true,
            Some(is_good) => {
                failed += usize::from(!is_good);
                false
            }
        });
    }
    let _ = std::fs::remove_dir_all(&directory);
    println!("{} passed, {failed} failed", count - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(name: &'static str, seconds: u64, seed: u64, directory: &Path) -> Running {
    let current = directory.join(name);
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--child", name, &seconds.to_string(), &seed.to_string()])
        .arg(&current)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    Running { name, child, current, since: Instant::now() }
}

/// Has it ended, and was it good?
fn ended(one: &mut Running, seconds: u64) -> Option<bool> {
    let status = one.child.try_wait().expect("a child");
    let hangs = status.is_none() && one.since.elapsed() > Duration::from_secs(seconds) + PATIENCE;
    let what = match status {
        Some(status) if status.success() => {
            let mut runs = String::new();
            one.child.stdout.iter_mut().for_each(|out| drop(out.read_to_string(&mut runs)));
            println!("{:<10} {:>9} runs", one.name, runs.trim());
            return Some(true);
        }
        Some(status) => status.to_string(),
        None if hangs => {
            let _ = one.child.kill();
            let _ = one.child.wait();
            format!("no end after {PATIENCE:?}")
        }
        None => return None,
    };
    let hex = to_hex(&read(&one.current).unwrap_or_default());
    println!("{}: FAILED ({what}) with the input\n  {hex}", one.name);
    println!("again: cargo run --manifest-path fuzz/Cargo.toml --example few_seconds -- --input {} {hex}", one.name);
    Some(false)
}

/// The corpus, then mutations of it.
fn fuzz((name, target): Target, time: Duration, seed: u64, current: &Path) -> u64 {
    let corpus = files(&root().join("corpus").join(name));
    assert!(!corpus.is_empty(), "{name} has no corpus");
    let tokens = dictionary(&root().join("dictionaries").join(format!("{name}.dict")));
    let file = File::create(current).expect("a file for the input");
    let run = |input: &[u8]| {
        // Whatever happens, the input is there. Each of its own length.
        file.write_all_at(input, 0).and_then(|()| file.set_len(input.len() as u64)).expect("the input is written");
        target(input);
    };
    corpus.iter().for_each(|input| run(input));
    let (begin, mut runs, mut random) = (Instant::now(), corpus.len() as u64, Random(seed));
    // A mutation that is kept may be mutated again: a few steps lead further than one.
    let mut pool = corpus.clone();
    while begin.elapsed() < time {
        let input = mutate(&mut random, &pool, &tokens);
        run(&input);
        runs += 1;
        if random.below(16) == 0 {
            // Those of the corpus stay.
            match pool.len() < 4 * corpus.len() {
                true => pool.push(input),
                false => {
                    let at = corpus.len() + random.below(pool.len() - corpus.len());
                    pool.get_mut(at).into_iter().for_each(|place| place.clone_from(&input));
                }
            }
        }
    }
    runs
}

fn files(directory: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| read(path).ok()).collect()
}

/// Tokens of a dictionary as libFuzzer reads it: `"text"` or `name="text"`, with `\xAB`, `\"` and `\\`.
fn dictionary(path: &Path) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let token = |line: &str| {
        let line = line.trim();
        let body = line.get(line.find('"')? + 1..line.rfind('"')?).filter(|_| !line.starts_with('#'))?;
        let (mut token, mut rest) = (Vec::new(), body.as_bytes());
        while let [first, tail @ ..] = rest {
            (rest, _) = match (first, tail) {
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let digits = [*high, *low];
                    let byte = std::str::from_utf8(&digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())?;
                    (after, token.push(byte))
                }
                (b'\\', [byte, after @ ..]) => (after, token.push(*byte)),
                _ => (tail, token.push(*first)),
            };
        }
        Some(token)
    };
    text.lines().filter_map(token).filter(|token| !token.is_empty()).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A part of a text: where it begins and ends.
    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = (length - start).min(1 << self.below(8));
        start..start + self.below(most + 1)
    }
}

/// Values at which something may change.
const NUMBERS: [&[u8]; 10] = [
    b"0",
    b"-1",
    b"255",
    b"65536",
    b"2147483648",
    b"4294967295",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"1e400",
];

fn mutate(random: &mut Random, pool: &[Vec<u8>], tokens: &[Vec<u8>]) -> Vec<u8> {
    let one = |random: &mut Random| pool.get(random.below(pool.len())).cloned().unwrap_or_default();
    let mut input = one(random);
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        match random.below(11) {
            0 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            1 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.next() as u8),
            2 => input
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte = [0, 0xff, 0x7f, 0x80, b'\n', b'\t'][random.below(6)]),
            3 => input.insert(at, random.next() as u8),
            4 => drop(input.drain(random.part(input.len()))),
            5 => {
                let part = random.part(input.len());
                let copy = input.get(part).unwrap_or_default().repeat(1 + random.below(3));
                drop(input.splice(at..at, copy));
            }
            6 => {
                let other = one(random);
                let part = random.part(other.len());
                drop(input.splice(at..at, other.get(part).unwrap_or_default().to_vec()));
            }
            7 => {
                let part = random.part(input.len());
                let number = NUMBERS[random.below(NUMBERS.len())].to_vec();
                drop(input.splice(part, number));
            }
            8 => {
                let length = u16::try_from(random.below(300)).unwrap_or_default();
                input.iter_mut().skip(at).take(2).zip(length.to_be_bytes()).for_each(|(byte, own)| *byte = own);
            }
            9 => {
                // A line of another input instead of one of this.
                let other = one(random);
                let theirs: Vec<&[u8]> = other.split(|byte| *byte == b'\n').collect();
                let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
                let (place, line) = (random.below(lines.len()), random.below(theirs.len()));
                lines[place] = theirs[line];
                input = lines.join(&b'\n');
            }
            _ => {
                let token = tokens.get(random.below(tokens.len())).cloned().unwrap_or_default();
                drop(input.splice(at..at, token));
            }
        }
    }
    input.truncate(LONGEST);
    input
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<char> = text.chars().collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok();
    digits.chunks(2).map(byte).collect()
}
