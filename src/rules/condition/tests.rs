use super::*;

fn ask(text: &str, row: &[(&str, Type, Option<&str>)]) -> Option<bool> {
    let image = |column: &str| {
        let found = row.iter().find(|(name, ..)| *name == column)?;
        Some((found.1.oid(), found.2.map(str::to_owned)))
    };
    let question = Question { row: &image, old: &image, new: &image, event: Event::Update, table: "shop.t" };
    Condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}")).holds(&question)
}

#[test]
fn values_compare_as_what_they_are() {
    let row = [
        ("status", Type::TEXT, Some("live")),
        ("price", Type::NUMERIC, Some("10.50")),
        ("count", Type::INT4, Some("9")),
        ("ok", Type::BOOL, Some("f")),
        ("gone", Type::TIMESTAMPTZ, None),
        ("labels", Type::TEXT_ARRAY, Some("{a,b}")),
        ("data", Type::JSONB, Some(r#"{"n": 3, "tags": ["x"]}"#)),
        ("odd name", Type::INT8, Some("1")),
    ];
    for (text, holds) in [
        ("row.status == 'live'", Some(true)),
        ("row.price > 9", Some(true)),
        ("row.price == 10.5", Some(true)),
        ("row.count < 10 && !row.ok", Some(true)),
        ("row.gone == null", Some(true)),
        ("row.gone > 5", None),
        ("row.missing == 1", None),
        ("row.missing == 1 || row.count == 9", None),
        ("'a' in row.labels", Some(true)),
        ("row.labels.exists(l, l == 'b')", Some(true)),
        ("row.data.n == 3 && row.data.tags[0] == 'x'", Some(true)),
        ("has(row.data.none)", Some(false)),
        ("row['odd name'] == 1", Some(true)),
        ("op == 'update' && table == 'shop.t'", Some(true)),
        ("old.count == new.count", Some(true)),
        ("row.status.startsWith('li')", Some(true)),
        ("row.status + 1 == 2", None),
    ] {
        assert_eq!(ask(text, &row), holds, "{text}");
    }
}

#[test]
fn mistakes() {
    for (text, code, word, offset) in [
        ("row.a ==", "condition", "mismatched input", 7),
        ("rwo.a == 1", "condition", "unknown name `rwo`", 0),
        ("row.a == 1 && foo(row.a)", "condition", "unknown function `foo`", 14),
        ("status == 'x'", "condition", "unknown name `status`", 0),
        ("row", "condition", "whole row", 0),
        ("1", "condition-type", "a constant", 0),
        ("row.a + 1", "condition-type", "a sum", 0),
        ("size(row.a)", "condition-type", "a number", 0),
        ("", "condition", "", 0),
    ] {
        let error = Condition::parse(text).unwrap_err();
        assert!(error.code == code && error.message.contains(word), "{text}: {error:?}");
        assert_eq!(error.offset, offset, "{text}: {error:?}");
    }
    for bad in ["(".repeat(5000), "!".repeat(100), "'\\q'".into(), "\0".into(), "[".repeat(63)] {
        assert!(Condition::parse(&bad).is_err());
    }
}

#[test]
fn what_it_names_and_whether_it_can_hold() {
    let condition = Condition::parse("row.a == 1 && old.b != new['c'] && [row.d].exists(x, x == row.e)").unwrap();
    let list = |columns: &BTreeSet<String>| columns.iter().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        (list(&condition.row), list(&condition.old), list(&condition.new)),
        ("a d e".into(), "b".into(), "c".into())
    );
    let misfit = |text: &str, kind: Type| Condition::parse(text).unwrap().misfit(|_| Some(kind.oid()));
    assert_eq!(misfit("row.a > 5", Type::INT4), None);
    assert!(misfit("row.a > 5", Type::TEXT).unwrap().contains("string, int"));
    assert!(misfit("row.a", Type::INT4).unwrap().contains("int"));
    assert_eq!(misfit("row.a", Type::BOOL), None);
    for (text, kind) in [
        ("row.a == 1", Type::TEXT),
        ("row.a != 'true'", Type::BOOL),
        ("row.a in ['1', '2']", Type::INT4),
        ("5 == row.a", Type::VARCHAR),
    ] {
        assert!(misfit(text, kind).is_some_and(|sentence| sentence.contains("never equal")), "{text}");
    }
    assert_eq!(misfit("row.a == null || row.a in [1, 2]", Type::INT4), None);
    assert_eq!(misfit("row.a == 1", Type::JSONB), None);
    assert!(Condition::parse("foo_bar(row.a)").is_err());
}
