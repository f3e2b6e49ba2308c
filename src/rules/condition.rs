//! `when`: a condition in CEL over `row` (the image that is rendered), `old`, `new`, `op` and `table`. Compiled once; what
//! cannot be decided counts as true, because doubt invalidates.

mod names;
mod value;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cel::{Context, Env, ExecutionError, Program, Value};
use tokio_postgres::types::Type;

use super::events::Event;
use names::{Family, Names, Operand, never_boolean};
use value::{sample, value};

/// The parser recurses, so what it is given is bounded.
const LONGEST: usize = 4096;
const DEEPEST: usize = 64;
/// Address space; what is not used is not backed by memory.
const STACK: usize = 64 << 20;
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
    /// Columns that are compared for equality, and with what: CEL takes a text and a number for different, without a word.
    equal: Vec<(String, Operand)>,
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
        let mut names = Names { images: Default::default(), unknown: None, local: Vec::new(), equal: Vec::new() };
        names.visit(program.expression());
        if let Some((message, id, back, help)) = names.unknown {
            let offset = program.source_info().offset_for(id).map_or(0, |(start, _)| start as usize);
            return Err(Error { help, ..wrong(message, offset.saturating_sub(back)) });
        }
        if let Some(kind) = never_boolean(&program.expression().expr) {
            let error = wrong(format!("a condition is true or false; this is {kind}"), 0);
            return Err(Error { code: "condition-type", ..error });
        }
        let ([row, old, new], equal) = (names.images, names.equal);
        Ok(Condition { program: Arc::new(program), text: text.to_owned(), row, old, new, equal })
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
        let unequal = self.equal.iter().find_map(|(column, other)| {
            let own = Family::of(type_of(column)?)?;
            let other = match other {
                Operand::Literal(family) => Some(*family),
                Operand::Column(column) => Family::of(type_of(column)?),
            }?;
            (own != other).then(|| {
                format!("`{column}` is {own:?} and compared with {other:?}: they are never equal").to_lowercase()
            })
        });
        if unequal.is_some() {
            return unequal;
        }
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

#[cfg(test)]
mod tests;
