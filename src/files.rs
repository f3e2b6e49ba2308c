//! Files that somebody else names or may replace: rules, secrets, certificates. A FIFO would stop the loop, a device fill the memory, and a rule file of
//! 60 MB take 850 MB.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Bytes of a file.
const LARGEST: u64 = 4 << 20;

/// The content of a regular file of at most 4 MiB; opened without waiting for anybody.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
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
