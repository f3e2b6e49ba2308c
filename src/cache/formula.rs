//! How a client library names the key of a tag: text with holes, such as `<key_prefix>:<version>:tag_<release>_<tag|md5>`. The same
//! for values, fields and bus messages.

use super::encoding::Encoding;

/// A parsed text whose options were filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Formula(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Text(Vec<u8>),
    Hole(Hole),
}

/// What is known only when a tag goes stale.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hole {
    /// The tag, as this client writes it.
    Tag(Encoding),
    /// A member of the tag's set.
    Member,
    /// 63 random bits, drawn for each pass and attempt: a positive number for every client that parses it.
    Random,
    /// The same inside a JSON string.
    MemberJson,
    /// The time (and the guard) in this unit, and how much later.
    Now(Unit, u64),
}

/// Units of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Milliseconds since 1970.
    Milliseconds,
    /// Seconds since 1970, rounded up: a stamp must not be older than the change.
    Seconds,
    /// 100 ns since the year 1 (.NET's `DateTimeOffset.UtcTicks`).
    Ticks,
}

/// What fills the holes.
#[derive(Clone, Copy, Debug)]
pub struct Fill<'a> {
    /// The tag.
    pub tag: &'a [u8],
    /// The member, within a set.
    pub member: &'a [u8],
    /// A number never used before.
    pub random: u64,
    /// Milliseconds since 1970, guard included.
    pub now: u64,
    /// How much of that is the guard.
    pub guard: u64,
}

/// For texts without holes.
pub const NOTHING: Fill<'static> = Fill { tag: b"", member: b"", random: 0, now: 0, guard: 0 };

impl<'a> Fill<'a> {
    /// The same with a tag.
    pub fn with(self, tag: &'a [u8]) -> Fill<'a> {
        Fill { tag, ..self }
    }
}

/// Holes without options.
const HOLES: [(&str, Hole); 10] = [
    ("tag", Hole::Tag(Encoding::Verbatim)),
    ("tag|md5", Hole::Tag(Encoding::Md5)),
    ("tag|xxh64", Hole::Tag(Encoding::Xxh64)),
    ("tag|rtc", Hole::Tag(Encoding::Rtc)),
    ("tag|magento", Hole::Tag(Encoding::Magento)),
    ("tag|json", Hole::Tag(Encoding::Json)),
    ("member", Hole::Member),
    ("member|json", Hole::MemberJson),
    ("random", Hole::Random),
    ("now_s", Hole::Now(Unit::Seconds, 0)),
];

impl Formula {
    /// Parses `text`; `<name>` is a hole or an option, `<name:>` an option followed by a colon unless it is empty, `<:name>` one with a
    /// colon before it, and `<name|rtc>` an option encoded like a tag. `<<` is a `<`. The error names what is not known.
    pub fn parse(text: &str, option: &impl Fn(&str) -> Option<String>) -> Result<Formula, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('<') {
            push(&mut parts, before.as_bytes());
            if let Some(literal) = after.strip_prefix('<') {
                push(&mut parts, b"<");
                rest = literal;
                continue;
            }
            let (name, tail) = after.split_once('>').ok_or_else(|| format!("`<{after}` is not closed by `>`"))?;
            rest = tail;
            match hole(name, option) {
                Some(hole) => parts.push(Part::Hole(hole)),
                None => push(&mut parts, &filled(name, option)?),
            }
        }
        push(&mut parts, rest.as_bytes());
        Ok(Formula(parts))
    }

    /// A member itself.
    pub fn member() -> Formula {
        Formula(vec![Part::Hole(Hole::Member)])
    }

    /// The tag itself.
    pub fn tag() -> Formula {
        Formula(vec![Part::Hole(Hole::Tag(Encoding::Verbatim))])
    }

    /// The text with its holes filled.
    pub fn render(&self, fill: &Fill) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Hole(Hole::Tag(encoding)) => encoding.write(fill.tag, &mut out),
                Part::Hole(Hole::Member) => out.extend_from_slice(fill.member),
                Part::Hole(Hole::Random) => out.extend(fill.random.to_string().bytes()),
                Part::Hole(Hole::MemberJson) => Encoding::Json.write(fill.member, &mut out),
                Part::Hole(Hole::Now(unit, later)) => {
                    out.extend(unit.of(fill.now).saturating_add(*later).to_string().bytes())
                }
            }
        }
        out
    }

    /// What stands before and after its first hole, and the encoding if that is the tag's.
    pub fn around(&self) -> (&[u8], Option<&Encoding>, &[u8]) {
        match self.0.iter().position(|part| matches!(part, Part::Hole(_))) {
            None => (self.text(0), None, b""),
            Some(at) => {
                let before = at.checked_sub(1).map_or(&b""[..], |before| self.text(before));
                let encoding = match self.0.get(at) {
                    Some(Part::Hole(Hole::Tag(encoding))) => Some(encoding),
                    _ => None,
                };
                (before, encoding, self.text(at + 1))
            }
        }
    }

    /// The text at this place.
    fn text(&self, at: usize) -> &[u8] {
        match self.0.get(at) {
            Some(Part::Text(text)) => text,
            _ => b"",
        }
    }

    /// The tag of a key that was found, where it can be told.
    pub fn tag_of<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        match self.around() {
            (head, Some(Encoding::Verbatim), tail) => key.strip_prefix(head)?.strip_suffix(tail),
            _ => None,
        }
    }

    /// Does a tag change what comes out?
    pub fn has_tag(&self) -> bool {
        self.tags() > 0
    }

    /// How often the tag stands in it.
    pub fn tags(&self) -> usize {
        self.0.iter().filter(|part| matches!(part, Part::Hole(Hole::Tag(_)))).count()
    }

    /// Is it never the same twice?
    pub fn is_random(&self) -> bool {
        self.0.contains(&Part::Hole(Hole::Random))
    }

    /// The unit of the time in it, if there is one.
    pub fn unit(&self) -> Option<Unit> {
        self.0.iter().find_map(|part| match part {
            Part::Hole(Hole::Now(unit, _)) => Some(*unit),
            _ => None,
        })
    }
}

fn push(parts: &mut Vec<Part>, text: &[u8]) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(before)) => before.extend_from_slice(text),
        _ => parts.push(Part::Text(text.to_vec())),
    }
}

fn hole(name: &str, option: &impl Fn(&str) -> Option<String>) -> Option<Hole> {
    if let Some((_, hole)) = HOLES.iter().find(|(known, _)| *known == name) {
        return Some(hole.clone());
    }
    if let Some(rest) = name.strip_prefix("now_ticks").or_else(|| name.strip_prefix("now_ms")) {
        let unit = if name.starts_with("now_ticks") { Unit::Ticks } else { Unit::Milliseconds };
        let later = rest.strip_prefix('+').map_or(Some(0), |later| later.parse().ok())?;
        return Some(Hole::Now(unit, later));
    }
    let (encoding, name) = name.strip_prefix("tag|")?.split_once(':')?;
    let prefix = option(name)?;
    Some(Hole::Tag(match encoding {
        "sha1" => Encoding::Sha1(prefix),
        "yii_php" => Encoding::Yii { prefix, igbinary: false },
        "yii_igbinary" => Encoding::Yii { prefix, igbinary: true },
        _ => return None,
    }))
}

fn filled(name: &str, option: &impl Fn(&str) -> Option<String>) -> Result<Vec<u8>, String> {
    let unknown = || format!("`<{name}>` is neither an option nor one of <tag>, <member>, <random>, <now_ms>, <now_s>");
    if let Some(name) = name.strip_suffix(':') {
        let text = option(name).ok_or_else(unknown)?;
        return Ok(if text.is_empty() { Vec::new() } else { format!("{text}:").into_bytes() });
    }
    if let Some(name) = name.strip_prefix(':') {
        let text = option(name).ok_or_else(unknown)?;
        return Ok(if text.is_empty() { Vec::new() } else { format!(":{text}").into_bytes() });
    }
    let (name, encoding) = match name.split_once('|') {
        Some((name, "rtc")) => (name, Encoding::Rtc),
        _ => (name, Encoding::Verbatim),
    };
    let mut out = Vec::new();
    encoding.write(option(name).ok_or_else(unknown)?.as_bytes(), &mut out);
    Ok(out)
}

impl Unit {
    /// `now` (milliseconds since 1970) in this unit.
    pub fn of(self, now: u64) -> u64 {
        match self {
            Unit::Milliseconds => now,
            Unit::Seconds => now.div_ceil(1_000),
            Unit::Ticks => now.saturating_mul(10_000).saturating_add(621_355_968_000_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(formula: &str, tag: &str) -> String {
        let option = |name: &str| match name {
            "p" => Some("app".to_owned()),
            "none" => Some(String::new()),
            "db" => Some("default".to_owned()),
            "yii" => Some("myapp".to_owned()),
            _ => None,
        };
        let fill = Fill { tag: tag.as_bytes(), member: b"m", random: 7, now: 1_000_001, guard: 0 };
        String::from_utf8(Formula::parse(formula, &option).unwrap().render(&fill)).unwrap()
    }

    /// The keys that the real libraries computed.
    #[test]
    fn keys_of_the_real_clients() {
        let tag = "CategoryModel.pk:15";
        assert_eq!(key(":1:tag_073_<tag|md5>", tag), ":1:tag_073_82f87684924ecd4a815ee924449c3fa1");
        assert_eq!(key("<p>:2:tag_073_<tag|md5>", tag), "app:2:tag_073_82f87684924ecd4a815ee924449c3fa1");
        assert_eq!(key("rtc:<tag|rtc>", "foo"), "rtc:rL0Y20zC~Fw");
        assert_eq!(key("t:<tag|rtc>", "CategoryModel.pk:42"), "t:XyujBJZh3qk");
        assert_eq!(key("mc:tag:<tag|xxh64>", "Product:prod_1"), "mc:tag:107716c3191617a2");
        assert_eq!(key(":1:<tag|sha1:db>", "shop_category"), ":1:8535ce592bc9d77ec39d1061ed617f1713de2b31");
        assert_eq!(key("zc:ti:69d_<tag|magento>", "CategoryModel.pk:7"), "zc:ti:69d_CATEGORYMODEL__PK_7");
        assert_eq!(key("<tag|yii_igbinary:yii>", "CategoryModel.pk:7"), "myappf7849c45168814495b3588cd555584b4");
        assert_eq!(key("<tag|yii_php:none>", "CategoryModel.pk:7"), "06d6c2d94af1c363e399d586b45b41d0");
    }

    #[test]
    fn holes_and_options() {
        assert_eq!(key("<p:>x<none:>y", ""), "app:xy");
        assert_eq!(key("{\"a\":<random>,\"b\":<now_ms>,\"c\":<now_s>}<<", ""), "{\"a\":7,\"b\":1000001,\"c\":1001}<");
        assert_eq!(key("\"<tag|json>\"", "a\"b\""), "\"a\\\"b\\\"\"");
        assert_eq!(Unit::Ticks.of(0), 621_355_968_000_000_000);
        for wrong in ["<nothing>", "<p", "<tag|what>"] {
            assert!(Formula::parse(wrong, &|_| None).is_err(), "{wrong}");
        }
        let formula = Formula::parse("a:<tag>:b", &|_| None).unwrap();
        assert_eq!((formula.tag_of(b"a:x:b"), formula.tag_of(b"a:x")), (Some(&b"x"[..]), None));
    }
}
