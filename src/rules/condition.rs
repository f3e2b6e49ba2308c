//! `when`: a condition in CEL over `row` (the image that is rendered), `old`, `new`, `op` and `table`. Compiled once; what
//! cannot be decided counts as true, because doubt invalidates.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::{Context, Env, ExecutionError, Program, Value};
use tokio_postgres::types::{Kind, Type};

use super::diagnostic::nearest;
use super::events::Event;
use super::value::elements;

/// The parser recurses, so what it is given is bounded.
const LONGEST: usize = 4096;
const DEEPEST: usize = 64;
/// Address space; what is not used is not backed by memory.
const STACK: usize = 64 << 20;
/// The images of a row that a condition may name.
const IMAGES: [&str; 3] = ["row", "old", "new"];
/// All that may stand free in a condition.
const VARIABLES: [&str; 5] = ["row", "old", "new", "op", "table"];
/// Functions of CEL's standard library that can be of use here.
const FUNCTIONS: [&str; 13] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "type",
    "dyn",
];

thread_local! {
    /// The standard library: made once, because making it takes longer than most conditions.
    static LIBRARY: Arc<Env> = Arc::new(Env::stdlib());
}

/// A compiled condition.
#[derive(Clone)]
pub struct Condition {
    program: Arc<Program>,
    /// As written.
    pub text: String,
    /// Columns of the image that is rendered, ...
    pub row: BTreeSet<String>,
    /// ... of the old one, ...
    pub old: BTreeSet<String>,
    /// ... and of the new one.
    pub new: BTreeSet<String>,
}

/// What is wrong with a condition: code, sentence, the characters before it, and what was misspelt.
#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    /// Stable name of the kind of problem.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// Characters before the problem.
    pub offset: usize,
    /// Advice.
    pub help: Option<String>,
}

/// Looks up a column in an image; the outer `None` is not known, the inner NULL.
pub type Image<'a> = &'a dyn Fn(&str) -> Option<(u32, Option<String>)>;

/// Everything that a condition is asked about.
pub struct Question<'a> {
    /// The image that is rendered.
    pub row: Image<'a>,
    /// The old row; nulls on INSERT.
    pub old: Image<'a>,
    /// The new row; nulls on DELETE.
    pub new: Image<'a>,
    /// What happened.
    pub event: Event,
    /// `schema.table`.
    pub table: &'a str,
}

impl PartialEq for Condition {
    fn eq(&self, other: &Condition) -> bool {
        self.text == other.text
    }
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Condition({})", self.text)
    }
}

impl Condition {
    /// Compiles a condition and looks at what it names.
    pub fn parse(text: &str) -> Result<Condition, Error> {
        let wrong = |message: String, offset: usize| Error { code: "condition", message, offset, help: None };
        let (mut depth, mut deepest) = (0_usize, 0);
        for character in text.chars() {
            match character {
                '(' | '[' | '{' | '?' | '!' | '-' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        if text.len() > LONGEST || deepest > DEEPEST {
            return Err(wrong(format!("a condition has at most {LONGEST} bytes and {DEEPEST} levels"), 0));
        }
        let program = match compile(text) {
            Ok(Ok(program)) => program,
            Ok(Err(errors)) => {
                let first = errors.errors.into_iter().next();
                let (message, column) = first.map(|error| (error.msg, error.pos.1)).unwrap_or_default();
                // The list of what could stand there fills a screen.
                let message = message.split(" expecting {").next().unwrap_or_default().to_owned();
                let offset =
                    usize::try_from(column - 1).unwrap_or_default().min(text.chars().count().saturating_sub(1));
                return Err(Error {
                    help: Some("conditions are CEL: row.status == 'live' && row.price > 5".into()),
                    ..wrong(message, offset)
                });
            }
            Err(_) => return Err(wrong("this condition cannot be parsed".into(), 0)),
        };
        let mut names = Names { images: Default::default(), unknown: None, local: Vec::new() };
        names.visit(program.expression());
        if let Some((message, id, back, help)) = names.unknown {
            let offset = program.source_info().offset_for(id).map_or(0, |(start, _)| start as usize);
            return Err(Error { help, ..wrong(message, offset.saturating_sub(back)) });
        }
        if let Some(kind) = never_boolean(&program.expression().expr) {
            let error = wrong(format!("a condition is true or false; this is {kind}"), 0);
            return Err(Error { code: "condition-type", ..error });
        }
        let [row, old, new] = names.images;
        Ok(Condition { program: Arc::new(program), text: text.to_owned(), row, old, new })
    }

    /// Does it hold? `None` if that cannot be decided.
    pub fn holds(&self, question: &Question) -> Option<bool> {
        match self.evaluate(question)? {
            Ok(Value::Bool(holds)) => Some(holds),
            _ => None,
        }
    }

    /// Why it can never be decided for columns of these types: asked with a value of each.
    pub fn misfit(&self, type_of: impl Fn(&str) -> Option<u32>) -> Option<String> {
        let sample = |column: &str| {
            let type_oid = type_of(column).unwrap_or(Type::TEXT.oid());
            Some((type_oid, Some(sample(type_oid).to_owned())))
        };
        let question = Question { row: &sample, old: &sample, new: &sample, event: Event::Update, table: "" };
        match self.evaluate(&question)? {
            Ok(Value::Bool(_)) => None,
            Ok(other) => Some(format!("a condition is true or false; this is a {}", other.type_of())),
            Err(ExecutionError::NoSuchOverload(error)) => Some(error.to_string()),
            Err(error @ (ExecutionError::UnsupportedBinaryOperator(..) | ExecutionError::UnexpectedType { .. })) => {
                Some(error.to_string())
            }
            // With other values it may be fine.
            Err(_) => None,
        }
    }

    fn evaluate(&self, question: &Question) -> Option<Result<Value, ExecutionError>> {
        let mut context = Context::with_env(LIBRARY.with(Arc::clone));
        for (name, columns, image) in
            [("row", &self.row, question.row), ("old", &self.old, question.old), ("new", &self.new, question.new)]
        {
            let mut map = HashMap::new();
            for column in columns {
                let (type_oid, text) = image(column)?;
                map.insert(column.clone(), text.map_or(Value::Null, |text| value(type_oid, text)));
            }
            context.add_variable_from_value(name, map);
        }
        context.add_variable_from_value("op", question.event.name());
        context.add_variable_from_value("table", question.table.to_owned());
        Some(self.program.execute(&context))
    }
}

/// The generated parser is not ours, needs tens of KiB of stack per level, and a rule file must never end the daemon: it gets
/// a thread of its own. `Err` is a panic.
fn compile(text: &str) -> std::thread::Result<Result<Program, cel::ParseErrors>> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || Program::compile(text));
        thread.map_err(|error| Box::new(error) as Box<_>)?.join()
    })
}

/// A column's text as CEL takes it.
fn value(type_oid: u32, text: String) -> Value {
    let number = |text: &str| match text.parse::<i64>() {
        Ok(whole) => Some(Value::Int(whole)),
        Err(_) => text.parse::<f64>().ok().map(Value::Float),
    };
    match Type::from_oid(type_oid) {
        Some(Type::BOOL) => Value::Bool(text == "t"),
        Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::NUMERIC | Type::FLOAT4 | Type::FLOAT8) => {
            number(&text).unwrap_or_else(|| text.into())
        }
        Some(Type::JSON | Type::JSONB) => serde_json::from_str(&text).map_or_else(|_| text.into(), json),
        Some(kind) => match kind.kind() {
            Kind::Array(element) => {
                let element = element.oid();
                let items = elements(&text).into_iter();
                let items = items.map(|item| item.map_or(Value::Null, |item| value(element, item)));
                Value::List(items.collect::<Vec<_>>().into())
            }
            _ => text.into(),
        },
        None => text.into(),
    }
}

fn json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Array(items) => Value::List(items.into_iter().map(json).collect::<Vec<_>>().into()),
        serde_json::Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (key, json(value))).collect::<HashMap<_, _>>().into()
        }
    }
}

/// Some value of a type, as PostgreSQL writes it.
fn sample(type_oid: u32) -> &'static str {
    match Type::from_oid(type_oid) {
        Some(Type::BOOL) => "t",
        Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::NUMERIC | Type::FLOAT4 | Type::FLOAT8) => "1",
        Some(Type::JSON | Type::JSONB) => "{}",
        Some(kind) if matches!(kind.kind(), Kind::Array(_)) => "{}",
        _ => "a",
    }
}

/// Kinds of expressions that give anything but a boolean.
fn never_boolean(expression: &Expr) -> Option<&'static str> {
    match expression {
        Expr::Literal(LiteralValue::Boolean(_)) => None,
        Expr::Literal(_) => Some("a constant"),
        Expr::List(_) => Some("a list"),
        Expr::Map(_) | Expr::Struct(_) => Some("a map"),
        Expr::Ident(name) if IMAGES.contains(&name.as_str()) => Some("a row"),
        Expr::Ident(name) if VARIABLES.contains(&name.as_str()) => Some("a text"),
        Expr::Call(call) => match call.func_name.as_str() {
            operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO => {
                Some("a sum")
            }
            operators::NEGATE | "size" | "int" | "uint" | "double" => Some("a number"),
            "string" => Some("a text"),
            _ => None,
        },
        _ => None,
    }
}

/// What an expression names.
struct Names {
    images: [BTreeSet<String>; 3],
    /// Sentence, place, characters that the place is too far, advice.
    unknown: Option<(String, u64, usize, Option<String>)>,
    /// Variables of macros (`exists(x, ...)`).
    local: Vec<String>,
}

impl Names {
    fn image(&mut self, operand: &IdedExpr, column: &str) -> bool {
        let Expr::Ident(name) = &operand.expr else { return false };
        let image = IMAGES.iter().position(|image| image == name);
        match image.and_then(|image| self.images.get_mut(image)) {
            Some(columns) => {
                columns.insert(column.to_owned());
                true
            }
            None => false,
        }
    }

    fn complain(&mut self, message: String, id: u64, back: usize, help: Option<String>) {
        self.unknown.get_or_insert((message, id, back, help));
    }

    fn visit(&mut self, expression: &IdedExpr) {
        match &expression.expr {
            Expr::Select(select) if self.image(&select.operand, &select.field) => {}
            Expr::Select(select) => self.visit(&select.operand),
            Expr::Call(call) => {
                if let (operators::INDEX, [operand, IdedExpr { expr: Expr::Literal(LiteralValue::String(column)), .. }]) =
                    (call.func_name.as_str(), call.args.as_slice())
                    && self.image(operand, column.inner())
                {
                    return;
                }
                let name = call.func_name.as_str();
                let operator = name.contains('_') || name.starts_with('@');
                if !operator && !FUNCTIONS.contains(&name) {
                    let help = match nearest(name, &FUNCTIONS) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known: {}", FUNCTIONS.join(", ")),
                    };
                    // A call stands at its parenthesis.
                    self.complain(format!("unknown function `{name}`"), expression.id, name.len(), Some(help));
                }
                call.target.iter().for_each(|target| self.visit(target));
                call.args.iter().for_each(|argument| self.visit(argument));
            }
            Expr::Comprehension(inner) => {
                [&inner.iter_range, &inner.accu_init].into_iter().for_each(|part| self.visit(part));
                self.local.extend([inner.iter_var.clone(), inner.accu_var.clone()]);
                self.local.extend(inner.iter_var2.clone());
                [&inner.loop_cond, &inner.loop_step, &inner.result].into_iter().for_each(|part| self.visit(part));
            }
            Expr::Ident(name) if IMAGES.contains(&name.as_str()) => {
                let help = Some(format!("name a column: {name}.column"));
                self.complain(format!("`{name}` is a whole row"), expression.id, 0, help);
            }
            Expr::Ident(name) if VARIABLES.contains(&name.as_str()) || self.local.contains(name) => {}
            Expr::Ident(name) => {
                let help = match nearest(name, &VARIABLES) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("columns are written row.{name}; known: {}", VARIABLES.join(", ")),
                };
                self.complain(format!("unknown name `{name}`"), expression.id, 0, Some(help));
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.visit(element)),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.visit(&entry.key);
                        self.visit(&entry.value);
                    }
                }
            }
            Expr::Struct(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }
}

#[cfg(test)]
mod tests {
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
    }
}
