//! Hash slots of a Redis Cluster: which of 16,384 a key belongs to (Redis Cluster specification, "Key distribution model").

/// How many there are.
pub const SLOTS: u16 = 16_384;

/// The slot of a key: CRC16 (XMODEM) of what stands between its first brace and the next closing one, else of all of it.
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(hash_tag(key).unwrap_or(key)) % SLOTS
}

/// A text whose slot this is: as a hash tag it sends a key there.
pub fn text_of(slot: u16) -> String {
    let mut numbers = (0_u32..).map(|number| number.to_string());
    numbers.find(|text| slot_of(text.as_bytes()) == slot % SLOTS).unwrap_or_default()
}

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let rest = key.get(open + 1..)?;
    let close = rest.iter().position(|byte| *byte == b'}')?;
    rest.get(..close).filter(|tag| !tag.is_empty())
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `CLUSTER KEYSLOT` answers.
    #[test]
    fn slots_of_keys() {
        for (key, slot) in [
            ("123456789", 12_739),
            ("foo", 12_182),
            ("{user1000}.following", 3_443),
            ("user1000", 3_443),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("foo{bar}{zap}", 5_061),
            ("", 0),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn a_text_for_each_slot() {
        for slot in [0, 1, 5_460, 16_383] {
            assert_eq!(slot_of(format!("waltag:{{{}}}:x", text_of(slot)).as_bytes()), slot);
        }
    }
}
