//! What people write into rule files.

use waltag::rules::Rules;
use waltag::rules::condition::{Condition, Question};
use waltag::rules::events::Event;
use waltag::rules::expand::Surroundings;
use waltag::rules::template::{Piece, Template};

use crate::bytes::{columns, lines, names_devices};

/// A template: a mistake lies within the text, and what was understood covers all of it, piece by piece.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let characters: Vec<char> = text.chars().collect();
    match Template::parse(text) {
        Err(error) => {
            assert!(error.offset <= characters.len(), "a place behind the text");
            assert!(!error.message.is_empty());
        }
        Ok(template) => {
            assert_eq!(template.text, text);
            // Written again: a placeholder as it stands there, a literal with its `<` doubled.
            let mut written = String::new();
            for piece in &template.pieces {
                match piece {
                    Piece::Literal(literal) => written.push_str(&literal.replace('<', "<<")),
                    Piece::Placeholder(placeholder) => {
                        let end = placeholder.offset + placeholder.width;
                        written.extend(characters.get(placeholder.offset..end).expect("a place within the text"));
                    }
                }
            }
            assert_eq!(written, text);
        }
    }
}

/// A rule file: every problem can be shown, and the same file gives the same rules.
pub fn rules(data: &[u8]) {
    if names_devices(data) {
        return;
    }
    let parse = || {
        let around = Surroundings::new(&|_| None, None);
        Rules::parse(vec![("r.yaml".into(), data.to_vec())], &around)
    };
    let told = |parsed: &Result<Rules, waltag::rules::Error>| match parsed {
        Ok(rules) => rules.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        Err(error) => vec![error.to_string()],
    };
    let parsed = parse();
    assert!(told(&parsed).iter().all(|text| !text.is_empty()));
    let again = parse();
    assert_eq!(told(&parsed), told(&again));
    if let (Ok(rules), Ok(again)) = (parsed, again) {
        assert_eq!(rules.files, [("r.yaml".into(), data.to_vec())]);
        assert_eq!(rules.tables(), again.tables());
        for (cache, other) in rules.caches.iter().zip(&again.caches) {
            assert!(cache.is_same(other), "the cache {} is another one when it is read again", cache.name);
        }
        for rule in &rules.rules {
            for tag in &rule.tags {
                assert!(tag.caches.iter().all(|index| *index < rules.caches.len()));
                assert!(tag.template.is_row() || Template::parse(&tag.template.text).is_ok());
            }
        }
    }
}

/// A condition (the first line) and a row (the others: name, type, text): the same question has the same answer, and its negation the other.
pub fn condition(data: &[u8]) {
    let lines = lines(data);
    let Some((text, rows)) = lines.split_first() else { return };
    let cells: Vec<(&str, u32, Option<&str>)> = rows
        .iter()
        .filter_map(|line| match columns(line).as_slice() {
            [Some(name), Some(kind), text] => Some((*name, kind.parse().ok()?, *text)),
            _ => None,
        })
        .collect();
    let condition = match Condition::parse(text) {
        Ok(condition) => condition,
        Err(error) => {
            assert!(error.offset <= text.chars().count(), "a place behind the text: {error:?}");
            return;
        }
    };
    let image = |name: &str| {
        let (_, type_oid, text) = cells.iter().find(|(column, ..)| *column == name)?;
        Some((*type_oid, text.map(str::to_owned)))
    };
    let question = Question { row: &image, old: &image, new: &image, event: Event::Update, table: "shop.t" };
    let holds = condition.holds(&question);
    assert_eq!(condition.holds(&question), holds, "asked twice");
    let type_of = |name: &str| cells.iter().find(|(column, ..)| *column == name).map(|(_, type_oid, _)| *type_oid);
    assert_eq!(condition.misfit(type_of), condition.misfit(type_of));
    for name in condition.row.iter().chain(&condition.old).chain(&condition.new) {
        assert!(text.contains(name.as_str()) || text.contains('\\'), "it names {name:?}, which nobody wrote");
    }
    // A comment would swallow the parenthesis.
    if let Ok(negated) = Condition::parse(&format!("!({text})"))
        && !text.contains("//")
    {
        assert_eq!(negated.holds(&question), holds.map(|holds| !holds), "negated");
    }
}
