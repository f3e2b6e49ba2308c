//! A position in PostgreSQL's write-ahead log, and a transaction number, as the replication protocol carries them.

use std::{fmt, str::FromStr};

/// Log sequence number: a byte position in the WAL (manual: "pg_lsn Type"). Written `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let invalid = || InvalidLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let part = |digits: &str| u32::from_str_radix(digits, 16).map_err(|_| invalid());
        Ok(Lsn(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

/// The text is not an LSN.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an LSN; one looks like 16/B374D848")]
pub struct InvalidLsn(String);

/// Transaction number as it stands in tuples and in pgoutput's Begin: 32 bits, which wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Xid(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for bad in ["", "16", "16/", "G/0", "1/2/3", "100000000/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
