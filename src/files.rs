//! Files that somebody else names or may replace: rules, secrets, certificates. A FIFO would stop the loop, a device fill the memory, and a rule file of
//! 60 MB take 850 MB.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// Bytes of a file.
const LARGEST: u64 = 4 << 20;

/// How long a pipe is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// From here on there is a loop that must not wait.
static NO_PIPES: AtomicBool = AtomicBool::new(false);

/// A pipe is refused from now on: until then `--rules <(helm template ...)` and `--database-url-file <(pass show ...)` are read.
pub fn refuse_pipes() {
    NO_PIPES.store(true, Ordering::Relaxed);
}

/// The content of a regular file of at most 4 MiB, or of a pipe that somebody writes; opened without waiting for anybody.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let is_pipe = |metadata: &std::fs::Metadata| metadata.file_type().is_fifo();
    if !NO_PIPES.load(Ordering::Relaxed) && is_pipe(&std::fs::metadata(path)?) {
        let pipe = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
        if is_pipe(&pipe.metadata()?) {
            return read_pipe(pipe);
        }
    }
    let unfit = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    // Looked at before it is opened, because opening a device may do something; and after, because it may have been replaced.
    let is_fit = |metadata: &std::fs::Metadata| match (metadata.is_file(), metadata.len()) {
        (false, _) => Err(unfit("it is not a regular file".into())),
        (true, length) if length > LARGEST => Err(unfit(format!("it has {length} bytes, and 4 MiB is the most"))),
        _ => Ok(()),
    };
    is_fit(&std::fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    is_fit(&file.metadata()?)?;
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content)?;
    match content.len() as u64 > LARGEST {
        true => Err(unfit("it grows while it is read, and 4 MiB is the most".into())),
        false => Ok(content),
    }
}

/// What comes out of a pipe within [`PATIENCE`]. One that nobody writes to ends at once.
fn read_pipe(mut pipe: File) -> io::Result<Vec<u8>> {
    let (begin, mut content, mut part) = (Instant::now(), Vec::new(), [0; 64 << 10]);
    loop {
        match pipe.read(&mut part) {
            Ok(0) if content.is_empty() => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is not a regular file, and nobody writes into it",
                ));
            }
            Ok(0) => return Ok(content),
            Ok(count) => content.extend_from_slice(part.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
        if content.len() as u64 > LARGEST || begin.elapsed() > PATIENCE {
            let sentence = "it is not a regular file, and what comes out of it does not end within 4 MiB and 3 s";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, sentence));
        }
    }
}

/// The same as text.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("small"), "a").unwrap();
        std::os::unix::fs::symlink(at("small"), at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        std::fs::File::create(at("sparse")).unwrap().set_len(2 << 30).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!((read(&at("small")).unwrap(), read_text(&at("link")).unwrap()), (b"a".to_vec(), "a".to_owned()));
        for name in ["zero", "sparse", "fifo", "socket", "none", "."] {
            assert!(read(&at(name)).is_err(), "{name}");
        }
    }
}
