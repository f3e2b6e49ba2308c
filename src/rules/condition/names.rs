//! What a condition names: columns of images, functions, and what is compared with what.

use std::collections::BTreeSet;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use tokio_postgres::types::{Kind, Type};

use crate::rules::diagnostic::nearest;

/// The images of a row that a condition may name.
pub(super) const IMAGES: [&str; 3] = ["row", "old", "new"];
/// All that may stand free in a condition.
pub(super) const VARIABLES: [&str; 5] = ["row", "old", "new", "op", "table"];
/// Functions of CEL's standard library that can be of use here.
pub(super) const FUNCTIONS: [&str; 13] = [
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

/// What a column is compared with.
#[derive(Clone)]
pub(super) enum Operand {
    Literal(Family),
    Column(String),
}

/// Kinds of values that can be equal to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Number,
    Boolean,
    Text,
}

impl Family {
    /// None for what is decided by the value, such as json.
    pub(super) fn of(type_oid: u32) -> Option<Family> {
        Some(match Type::from_oid(type_oid)? {
            Type::BOOL => Family::Boolean,
            Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::NUMERIC | Type::FLOAT4 | Type::FLOAT8 => {
                Family::Number
            }
            Type::JSON | Type::JSONB => return None,
            kind if matches!(kind.kind(), Kind::Array(_)) => return None,
            _ => Family::Text,
        })
    }
}

/// Kinds of expressions that give anything but a boolean.
pub(super) fn never_boolean(expression: &Expr) -> Option<&'static str> {
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
pub(super) struct Names {
    pub(super) images: [BTreeSet<String>; 3],
    /// Sentence, place, characters that the place is too far, advice.
    pub(super) unknown: Option<(String, u64, usize, Option<String>)>,
    /// Variables of macros (`exists(x, ...)`).
    pub(super) local: Vec<String>,
    pub(super) equal: Vec<(String, Operand)>,
}

/// A column of an image, or a literal.
pub(super) fn operand(expression: &IdedExpr) -> Option<Operand> {
    match &expression.expr {
        Expr::Select(select) => match &select.operand.expr {
            Expr::Ident(name) if IMAGES.contains(&name.as_str()) => Some(Operand::Column(select.field.clone())),
            _ => None,
        },
        Expr::Literal(LiteralValue::String(_)) => Some(Operand::Literal(Family::Text)),
        Expr::Literal(LiteralValue::Boolean(_)) => Some(Operand::Literal(Family::Boolean)),
        Expr::Literal(LiteralValue::Int(_) | LiteralValue::UInt(_) | LiteralValue::Double(_)) => {
            Some(Operand::Literal(Family::Number))
        }
        _ => None,
    }
}

impl Names {
    pub(super) fn image(&mut self, operand: &IdedExpr, column: &str) -> bool {
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

    pub(super) fn complain(&mut self, message: String, id: u64, back: usize, help: Option<String>) {
        self.unknown.get_or_insert((message, id, back, help));
    }

    pub(super) fn note_comparison(&mut self, operator: &str, arguments: &[IdedExpr]) {
        let [left, right] = arguments else { return };
        let others: Vec<&IdedExpr> = match (operator, &right.expr) {
            (operators::EQUALS | operators::NOT_EQUALS, _) => vec![right],
            (operators::IN, Expr::List(list)) => list.elements.iter().collect(),
            _ => return,
        };
        for other in others {
            match (operand(left), operand(other)) {
                (Some(Operand::Column(column)), Some(other)) | (Some(other), Some(Operand::Column(column))) => {
                    self.equal.push((column, other));
                }
                _ => {}
            }
        }
    }

    pub(super) fn visit(&mut self, expression: &IdedExpr) {
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
                self.note_comparison(&call.func_name, &call.args);
                let name = call.func_name.as_str();
                let operator = name.starts_with('@') || !name.bytes().any(|byte| byte.is_ascii_alphanumeric());
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
