//! What clients do to a tag before it is part of a key.

use md5::Md5;
use sha1::{Digest, Sha1};

/// What a client does to a tag before it is part of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Nothing.
    Verbatim,
    /// Its md5, in hexadecimal.
    Md5,
    /// The sha1 of this, a colon and the tag, in hexadecimal (`django-cachalot`'s table keys).
    Sha1(String),
    /// xxh64 with seed 0, in hexadecimal (`@medusajs/caching-redis`).
    Xxh64,
    /// The first 8 bytes of its md5 in base64url without padding, `~` for `-` (`rtc`, `_hash`).
    Rtc,
    /// `strtoupper`, `.` is `__`, anything else that is no letter, digit or underscore is `_` (Magento's frontends).
    Magento,
    /// `buildKey([TagDependency::class, $tag])`, and `buildKey` of that, with this prefix (`yii\caching\Cache`).
    Yii {
        /// In front, both times.
        prefix: String,
        /// That extension is loaded: arrays are not written by `serialize`.
        igbinary: bool,
    },
    /// Inside a JSON string.
    Json,
}

impl Encoding {
    /// Hexadecimal digits that it gives, where it is a hash.
    pub fn digits(&self) -> Option<usize> {
        match self {
            Encoding::Md5 => Some(32),
            Encoding::Sha1(_) => Some(40),
            Encoding::Xxh64 => Some(16),
            Encoding::Verbatim | Encoding::Magento | Encoding::Rtc | Encoding::Json | Encoding::Yii { .. } => None,
        }
    }

    /// Appends the tag as this client writes it.
    pub fn write(&self, tag: &[u8], out: &mut Vec<u8>) {
        match self {
            Encoding::Verbatim => out.extend_from_slice(tag),
            Encoding::Md5 => hex(&Md5::digest(tag), out),
            Encoding::Sha1(before) => hex(&Sha1::digest([before.as_bytes(), b":", tag].concat()), out),
            Encoding::Xxh64 => out.extend(format!("{:016x}", twox_hash::XxHash64::oneshot(0, tag)).bytes()),
            Encoding::Rtc => base64_url(Md5::digest(tag).get(..8).unwrap_or_default(), out),
            Encoding::Magento => magento(tag, out),
            Encoding::Yii { prefix, igbinary } => {
                let key = if *igbinary { yii_igbinary(tag) } else { yii_php(tag) };
                let mut inner = prefix.clone().into_bytes();
                hex(&Md5::digest(key), &mut inner);
                out.extend(prefix.bytes());
                // What is short and plain already is not hashed again.
                if prefix.is_empty() { out.extend(inner) } else { hex(&Md5::digest(inner), out) }
            }
            Encoding::Json => {
                let text = serde_json::Value::from(String::from_utf8_lossy(tag)).to_string();
                let quoted = text.len().saturating_sub(1);
                out.extend_from_slice(text.as_bytes().get(1..quoted).unwrap_or_default());
            }
        }
    }
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for byte in bytes {
        out.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

fn base64_url(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: [u8; 64] = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789~_";
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digits = [18, 12, 6, 0].map(|shift| DIGITS[(word >> shift) as usize & 63]);
        out.extend(digits.iter().take(chunk.len() + 1));
    }
}

fn magento(tag: &[u8], out: &mut Vec<u8>) {
    for byte in tag {
        match byte {
            b'.' => out.extend(b"__"),
            byte if byte.is_ascii_alphanumeric() => out.push(byte.to_ascii_uppercase()),
            _ => out.push(b'_'),
        }
    }
}

const YII_CLASS: &[u8] = b"yii\\caching\\TagDependency";

fn yii_php(tag: &[u8]) -> Vec<u8> {
    let mut text = format!("a:2:{{i:0;s:{}:\"", YII_CLASS.len()).into_bytes();
    text.extend(YII_CLASS);
    text.extend(format!("\";i:1;s:{}:\"", tag.len()).bytes());
    text.extend(tag);
    text.extend(b"\";}");
    text
}

/// An array of two strings: version 2; 0x14 array, 0x06 integer key, 0x11 string with one byte of length (0x12: two).
fn yii_igbinary(tag: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 2, 0x14, 2, 0x06, 0];
    let string = |out: &mut Vec<u8>, text: &[u8]| {
        match u8::try_from(text.len()) {
            Ok(length) => out.extend([0x11, length]),
            Err(_) => {
                out.push(0x12);
                out.extend((text.len() as u16).to_be_bytes());
            }
        }
        out.extend(text);
    };
    string(&mut out, YII_CLASS);
    out.extend([0x06, 1]);
    string(&mut out, tag);
    out
}
