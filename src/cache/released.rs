//! The lock that cache-dependencies leaves behind a transaction: for a while its own `set()` stores nothing under the tag, so a reader
//! that read the old row cannot bring it back (`cache_dependencies/dependencies.py`, ReleasedTagState; any isolation level looks).

use std::time::{Duration, SystemTime};

/// Stands for the session: any other than the reader's own.
const SESSION: &[u8] = b"waltag";
/// The library keeps the lock for this long beyond its delay.
const MARGIN: u64 = 5;

/// The key of the lock of a tag key `<key_prefix>:<version>:tag_<release>_<md5>`.
pub fn key(tag_key: &[u8]) -> Option<Vec<u8>> {
    let at = tag_key.len().checked_sub("tag_07743_".len() + 32)?;
    let (head, name) = tag_key.split_at_checked(at).filter(|(_, name)| name.starts_with(b"tag_"))?;
    Some([head, b"released_", name].concat())
}

/// A pickle (protocol 2) of `ReleasedTagState(session_id, time, delay)`: accepted by Python 2.7 to 3.11, on django-redis and on
/// Django's own backend. Anything else in this key makes `set()` raise.
pub fn value(delay: Duration) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut pickle = b"\x80\x02ccache_dependencies.dependencies\nReleasedTagState\n)\x81}(".to_vec();
    let text = |pickle: &mut Vec<u8>, text: &[u8]| {
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text);
    };
    text(&mut pickle, b"session_id");
    text(&mut pickle, SESSION);
    for (name, seconds) in [(&b"time"[..], now.as_secs_f64()), (b"delay", delay.as_secs_f64())] {
        text(&mut pickle, name);
        pickle.push(b'G');
        pickle.extend(seconds.to_be_bytes());
    }
    pickle.extend(b"ub.");
    pickle
}

/// How long the lock's key lives, in milliseconds: as the library sets it.
pub fn life(delay: Duration) -> u64 {
    (MARGIN + delay.as_secs().max(1)) * 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_the_library_reads() {
        let tag = b":1:tag_07743_82f87684924ecd4a815ee924449c3fa1";
        assert_eq!(key(tag).unwrap(), b":1:released_tag_07743_82f87684924ecd4a815ee924449c3fa1");
        assert_eq!(key(b"short"), None);
        let value = value(Duration::from_secs(2));
        let head = b"\x80\x02ccache_dependencies.dependencies\nReleasedTagState\n)\x81}(X\x0a\0\0\0session_idX\x06\0\0\0waltagX\x04\0\0\0timeG";
        assert!(value.starts_with(head));
        assert!(value.ends_with(b"X\x05\0\0\0delayG\x40\0\0\0\0\0\0\0ub."));
        assert_eq!((life(Duration::from_secs(2)), life(Duration::from_millis(30))), (7_000, 6_000));
    }
}
