//! Every message below was recorded from PostgreSQL 15.18 by `pg_logical_slot_get_binary_changes`.

use super::*;

/// Bytes in hexadecimal, with spaces between fields for the reader.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn values(tuple: Tuple<'_>) -> Vec<Value<'_>> {
    tuple.values().collect()
}

/// UPDATE shop.t SET v = 'b', from 'a', under REPLICA IDENTITY FULL.
const FULL_UPDATE: &str = "55 00004001 4f 0002 74 00000001 31 74 00000001 61 4e 0002 74 00000001 31 74 00000001 62";

#[test]
fn begin_and_commit() {
    let begin = bytes("42 000000000152f840 000303e07ee78688 000002db");
    let Ok(Message::Begin { final_lsn, committed, xid }) = Message::parse(&begin) else { panic!() };
    assert_eq!((final_lsn, xid), (Lsn(0x152_F840), Xid(731)));
    // Some day in 2026.
    assert_eq!(committed.0 / 1_000_000 / 86_400 / 365, 26);
    let commit = bytes("43 00 000000000152f840 000000000152f870 000303e07ee78688");
    let expected = Message::Commit { commit_lsn: Lsn(0x152_F840), end_lsn: Lsn(0x152_F870) };
    assert_eq!(Message::parse(&commit), Ok(expected));
}

/// CREATE TABLE shop.t (id int PRIMARY KEY, v text), under identity DEFAULT and FULL.
#[test]
fn relation_with_key_flags() {
    let default = "52 00004001 73686f7000 7400 64 0002 01 696400 00000017 ffffffff 00 7600 00000019 ffffffff";
    let full = "52 00004001 73686f7000 7400 66 0002 01 696400 00000017 ffffffff 01 7600 00000019 ffffffff";
    for (recorded, identity, second_is_key) in [(default, b'd', false), (full, b'f', true)] {
        let recorded = bytes(recorded);
        let Ok(Message::Relation(relation)) = Message::parse(&recorded) else { panic!() };
        assert_eq!((relation.oid, relation.namespace, relation.name), (0x4001, "shop", "t"));
        assert_eq!(relation.identity, identity);
        let columns: Vec<_> = relation.columns.iter().map(|c| (c.name, c.key, c.type_oid)).collect();
        assert_eq!(columns, [("id", true, 23), ("v", second_is_key, 25)]);
    }
}

/// pg_logical_emit_message(false, 'waltag', 'hi')
#[test]
fn logical_message() {
    let recorded = bytes("4d 00 000000000152f840 77616c74616700 00000002 6869");
    assert_eq!(
        Message::parse(&recorded),
        Ok(Message::Message { transactional: false, prefix: "waltag", content: b"hi" })
    );
}

#[test]
fn rows() {
    // INSERT (1, NULL)
    let insert = bytes("49 00004001 4e 0002 74 00000001 31 6e");
    let Ok(Message::Insert { relation: 0x4001, new }) = Message::parse(&insert) else { panic!() };
    assert_eq!(values(new), [Value::Text(b"1"), Value::Null]);

    // UPDATE v = '' under DEFAULT: the key did not change, so there is no old row.
    let plain = bytes("55 00004001 4e 0002 74 00000001 31 74 00000000");
    let Ok(Message::Update { old: None, new, .. }) = Message::parse(&plain) else { panic!() };
    assert_eq!(values(new), [Value::Text(b"1"), Value::Text(b"")]);

    let full = bytes(FULL_UPDATE);
    let Ok(Message::Update { old: Some(Old::Full(old)), new, .. }) = Message::parse(&full) else { panic!() };
    assert_eq!(values(old), [Value::Text(b"1"), Value::Text(b"a")]);
    assert_eq!(values(new), [Value::Text(b"1"), Value::Text(b"b")]);

    // DELETE under DEFAULT: the column outside the key stands there as NULL although it was ''.
    let delete = bytes("44 00004001 4b 0002 74 00000001 31 6e");
    let Ok(Message::Delete { old: Old::Key(old), .. }) = Message::parse(&delete) else { panic!() };
    assert_eq!(values(old), [Value::Text(b"1"), Value::Null]);
}

/// UPDATE id = 3 of a row whose v is 5,000 bytes out of line: the old key, and a value that was not sent.
#[test]
fn a_changed_key_and_an_unchanged_toast_value() {
    let update = bytes("55 00004001 4b 0002 74 00000001 32 6e 4e 0002 74 00000001 33 75");
    let Ok(Message::Update { old: Some(Old::Key(old)), new, .. }) = Message::parse(&update) else { panic!() };
    assert_eq!(values(old), [Value::Text(b"2"), Value::Null]);
    assert_eq!(values(new), [Value::Text(b"3"), Value::Unchanged]);
}

/// CREATE DOMAIN flag AS boolean.
#[test]
fn a_domain_is_told_with_its_base_type() {
    let domain = bytes("59 0000400e 00 626f6f6c00");
    assert_eq!(Message::parse(&domain), Ok(Message::Type { oid: 0x400E, namespace: "", name: "bool" }));
}

#[test]
fn truncate_of_two_tables() {
    let truncate = bytes("54 00000002 00 00004001 00004008");
    let Ok(Message::Truncate { relations }) = Message::parse(&truncate) else { panic!() };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [0x4001, 0x4008]);
}

#[test]
fn every_cut_and_every_extra_byte_is_an_error() {
    let update = bytes(FULL_UPDATE);
    for end in 0..update.len() {
        assert!(Message::parse(&update[..end]).is_err(), "cut at {end}");
    }
    let mut longer = update;
    longer.push(0);
    assert_eq!(Message::parse(&longer), Err(Error::Trailing(1)));
    assert_eq!(Message::parse(&bytes("54 ffffffff 00 00004001")), Err(Error::Truncated));
    assert_eq!(Message::parse(&bytes("7a")), Err(Error::Tag(b'z')));
}

/// `fuzz/` does this for hours; here for a moment, with bytes of the right shape.
#[test]
fn no_panic_on_any_bytes() {
    use rand::RngExt;
    let mut random = rand::rng();
    let alphabet = b"BCRIUDTOYKNntub\0\x01\x02\x04\xff";
    for _ in 0..30_000 {
        let length = random.random_range(0..48);
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                if random.random_bool(0.7) { alphabet[random.random_range(0..alphabet.len())] } else { random.random() }
            })
            .collect();
        if let Ok(Message::Insert { new, .. }) = Message::parse(&bytes) {
            new.values().for_each(drop);
        }
    }
}
