use tokio_postgres::types::Type;

use super::*;
use crate::rules::expand::Surroundings;

const RULES: &str = r#"
version: 1
caches:
  py: { url: "redis://h/1", dialect: cache-dependencies }
  raw: { url: "redis://h/2", dialect: keys }
rules:
  - table: t
    caches: [py]
    tags:
      - "M.pk:<id>"
      - "C:<c>.A:<a>"
      - { tag: "M", events: [insert, delete, truncate] }
      - { tag: "k:<c|default:none|upper>", caches: [raw] }
      - { tag: "k:<s>", caches: [raw] }
"#;

fn rules(text: &str) -> Rules {
    let around = Surroundings::new(&|_| None, None);
    Rules::parse(vec![("r.yaml".into(), text.into())], &around).unwrap_or_else(|error| panic!("{error}"))
}

fn columns(key: &[&str]) -> Vec<Column> {
    [("id", Type::INT4), ("c", Type::INT4), ("a", Type::BOOL), ("s", Type::TEXT)]
        .map(|(name, kind)| Column { name: name.into(), type_oid: kind.oid(), key: key.contains(&name) })
        .into()
}

/// Renders one change under an identity of `key`; tags of both caches, and the templates that could not be listed.
fn render(key: &[&str], event: Event, old: Option<&[Cell]>, new: Option<&[Cell]>) -> (Vec<String>, Vec<String>) {
    let rules = rules(RULES);
    let table = TableName { schema: "public".into(), name: "t".into() };
    let plan = Plan::compile(&rules, &[table], &columns(key));
    assert!(plan.unfit.is_empty(), "{:?}", plan.unfit);
    let mut tags = [Stale::default(), Stale::default()];
    let mut unlisted = Vec::new();
    plan.render(Change { event, old, new }, &mut tags, |entry| unlisted.push(entry.template.to_owned()));
    let text = |tag: &[u8]| String::from_utf8(tag.to_vec()).unwrap();
    assert_eq!(tags.iter().any(|stale| stale.sweep.is_some()), !unlisted.is_empty());
    (tags.iter().flat_map(|stale| stale.tags.iter().map(text)).collect(), unlisted)
}

const ALL: [&str; 4] = ["id", "c", "a", "s"];

fn row<'a>(id: &'a str, c: Option<&'a str>, a: &'a str, s: &'a str) -> [Cell<'a>; 4] {
    [Cell::Text(id), c.map_or(Cell::Null, Cell::Text), Cell::Text(a), Cell::Text(s)]
}

#[test]
fn a_moved_row_makes_both_categories_stale() {
    let (old, new) = (row("7", Some("1"), "t", "x"), row("7", Some("2"), "t", "x"));
    let (tags, unlisted) = render(&ALL, Event::Update, Some(&old), Some(&new));
    assert_eq!(tags, ["M.pk:7", "C:2.A:True", "C:1.A:True", "k:2", "k:1", "k:x"]);
    assert!(unlisted.is_empty());
}

#[test]
fn null_is_none_in_python_and_skips_elsewhere_unless_a_filter_says() {
    let new = row("7", None, "f", "");
    let (tags, _) = render(&ALL, Event::Insert, None, Some(&new));
    // The keys cache skips the empty `k:<s>`: the bare `k:` is another key.
    assert_eq!(tags, ["M.pk:7", "C:None.A:False", "M", "k:NONE"]);
}

#[test]
fn what_the_identity_does_not_send_is_told_and_never_rendered() {
    let old = [Cell::Text("7"), Cell::Unknown, Cell::Unknown, Cell::Unknown];
    let (tags, unlisted) = render(&["id"], Event::Delete, Some(&old), None);
    assert_eq!(tags, ["M.pk:7", "M"]);
    assert_eq!(unlisted, ["C:<c>.A:<a>", "k:<c|default:none|upper>", "k:<s>"]);
    // Without an old row the identity did not change, so `M.pk` is complete and the others are not.
    let new = row("7", Some("2"), "t", "x");
    let (tags, unlisted) = render(&["id"], Event::Update, None, Some(&new));
    assert_eq!(tags, ["M.pk:7", "C:2.A:True", "k:2", "k:x"]);
    assert_eq!(unlisted, ["C:<c>.A:<a>", "k:<c|default:none|upper>", "k:<s>"]);
}

/// A text of any size would lie in memory for as long as an outage lasts.
#[test]
fn a_tag_of_more_than_a_kibibyte_is_swept_for() {
    let long = "x".repeat(1_023);
    for (name, fits) in [(&long[1..], true), (&long, false)] {
        let new = row("7", Some("2"), "t", name);
        let (tags, unlisted) = render(&ALL, Event::Insert, None, Some(&new));
        assert_eq!(tags.contains(&format!("k:{name}")), fits);
        assert_eq!(unlisted, if fits { vec![] } else { vec!["k:<s>"] });
    }
    // Where another column makes that there is no tag, none is too long.
    let text = RULES.replace("k:<s>", "k:<s>:<c>");
    let plan = Plan::compile(&rules(&text), &[TableName { schema: "public".into(), name: "t".into() }], &columns(&ALL));
    let (mut stale, mut unlisted) = ([Stale::default(), Stale::default()], 0);
    let megabyte = "x".repeat(1 << 20);
    for (c, expected) in [(None, 0), (Some("2"), 1)] {
        let new = row("7", c, "t", &megabyte);
        plan.render(Change { event: Event::Insert, old: None, new: Some(&new) }, &mut stale, |_| unlisted += 1);
        assert_eq!(unlisted, expected);
    }
    assert!(stale[1].size() < 8 << 10, "{}", stale[1].size());
}

#[test]
fn unchanged_toast_comes_from_the_old_row() {
    let old = row("7", Some("1"), "t", "long");
    let new = [Cell::Text("7"), Cell::Text("2"), Cell::Text("t"), Cell::Unknown];
    let (tags, unlisted) = render(&ALL, Event::Update, Some(&old), Some(&new));
    assert!(tags.contains(&"k:long".to_owned()) && unlisted.is_empty(), "{tags:?} {unlisted:?}");
}

#[test]
fn truncate_sends_constant_templates_and_tells_the_others() {
    let (tags, unlisted) = render(&ALL, Event::Truncate, None, None);
    assert_eq!(tags, ["M"]);
    assert_eq!(unlisted.len(), 4);
}

#[test]
fn a_column_that_is_gone_is_named_with_its_place() {
    let rules = rules(RULES);
    let table = TableName { schema: "public".into(), name: "t".into() };
    let plan = Plan::compile(&rules, &[table], &columns(&ALL)[..3]);
    assert_eq!(plan.unfit.len(), 1);
    assert!(plan.unfit[0].starts_with("r.yaml:14:17: `k:<s>` needs the column `s`"), "{}", plan.unfit[0]);
}

#[test]
fn table_and_schema_are_those_of_the_rule() {
    let text = RULES.replace("M.pk:<id>", "<@schema>.<@table|upper>:<id>");
    let rules = rules(&text);
    let root = TableName { schema: "public".into(), name: "t".into() };
    let leaf = TableName { schema: "parts".into(), name: "t_2026".into() };
    let plan = Plan::compile(&rules, &[leaf, root], &columns(&ALL));
    let mut tags = [Stale::default(), Stale::default()];
    let new = row("7", Some("2"), "t", "x");
    plan.render(Change { event: Event::Insert, old: None, new: Some(&new) }, &mut tags, |_| {});
    assert_eq!(tags[0].tags.iter().next().unwrap(), b"public.T:7");
}
