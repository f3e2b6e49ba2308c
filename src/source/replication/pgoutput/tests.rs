use super::*;

/// Bytes as PostgreSQL 15 sent them for `shop.t(id int primary key, v text)`, in hexadecimal, spaces between fields.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn text<'a>(tuple: Tuple<'a>) -> Vec<Value<'a>> {
    tuple.values().collect()
}

#[test]
fn begin_and_commit() {
    let begin = bytes("42 00000000016B3748 0002A1B2C3D4E5F6 000002DA");
    assert_eq!(Message::parse(&begin), Ok(Message::Begin { final_lsn: Lsn(0x16B_3748), xid: Xid(730) }));
    let commit = bytes("43 00 00000000016B3748 00000000016B3778 0002A1B2C3D4E5F6");
    let expected = Message::Commit { commit_lsn: Lsn(0x16B_3748), end_lsn: Lsn(0x16B_3778) };
    assert_eq!(Message::parse(&commit), Ok(expected));
}

#[test]
fn relation_with_key_flags() {
    let recorded = bytes("52 00004001 73686F7000 7400 64 0002 01 696400 00000017 FFFFFFFF 00 7600 00000019 FFFFFFFF");
    let Ok(Message::Relation(relation)) = Message::parse(&recorded) else { panic!() };
    assert_eq!((relation.namespace, relation.name, relation.identity), ("shop", "t", b'd'));
    let columns: Vec<_> = relation.columns.iter().map(|c| (c.name, c.key, c.type_oid)).collect();
    assert_eq!(columns, [("id", true, 23), ("v", false, 25)]);
}

#[test]
fn rows() {
    let insert = bytes("49 00004001 4E 0002 74 00000001 31 6E");
    let Ok(Message::Insert { relation: 0x4001, new }) = Message::parse(&insert) else { panic!() };
    assert_eq!(text(new), [Value::Text(b"1"), Value::Null]);

    let update = bytes("55 00004001 4F 0002 74 00000001 31 74 00000001 61 4E 0002 74 00000001 31 75");
    let Ok(Message::Update { old: Some(Old::Full(old)), new, .. }) = Message::parse(&update) else { panic!() };
    assert_eq!(text(old), [Value::Text(b"1"), Value::Text(b"a")]);
    assert_eq!(text(new), [Value::Text(b"1"), Value::Unchanged]);

    let plain = bytes("55 00004001 4E 0002 74 00000001 31 74 00000000");
    let Ok(Message::Update { old: None, new, .. }) = Message::parse(&plain) else { panic!() };
    assert_eq!(text(new), [Value::Text(b"1"), Value::Text(b"")]);

    let delete = bytes("44 00004001 4B 0002 74 00000001 31 6E");
    let Ok(Message::Delete { old: Old::Key(old), .. }) = Message::parse(&delete) else { panic!() };
    assert_eq!(text(old), [Value::Text(b"1"), Value::Null]);
}

#[test]
fn a_domain_is_told_with_its_base_type() {
    let domain = bytes("59 00004003 00 626F6F6C00");
    assert_eq!(Message::parse(&domain), Ok(Message::Type { oid: 0x4003, namespace: "", name: "bool" }));
}

#[test]
fn truncate_of_two_tables() {
    let truncate = bytes("54 00000002 00 00004001 00004002");
    let Ok(Message::Truncate { relations }) = Message::parse(&truncate) else { panic!() };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [0x4001, 0x4002]);
}

#[test]
fn every_cut_and_every_extra_byte_is_an_error() {
    let update = bytes("55 00004001 4F 0002 74 00000001 31 74 00000001 61 4E 0002 74 00000001 31 75");
    for end in 0..update.len() {
        assert!(Message::parse(&update[..end]).is_err(), "cut at {end}");
    }
    let mut longer = update;
    longer.push(0);
    assert_eq!(Message::parse(&longer), Err(Error::Trailing(1)));
    assert_eq!(Message::parse(&bytes("54 FFFFFFFF 00 00004001")), Err(Error::Truncated));
    assert_eq!(Message::parse(&bytes("7A")), Err(Error::Tag(b'z')));
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
