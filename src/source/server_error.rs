//! An error or notice of PostgreSQL, whichever connection it came by.

use std::fmt;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

use crate::plain::{message, plain};

/// The fields of an ErrorResponse or NoticeResponse that people need (manual: "Error and Notice Message Fields").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE, five characters.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// DETAIL.
    pub detail: Option<String>,
    /// HINT.
    pub hint: Option<String>,
}

impl ServerError {
    /// From the wire.
    pub fn from_fields(mut fields: ErrorFields<'_>) -> ServerError {
        let mut error = ServerError::default();
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    /// From a SQL session.
    pub fn from_sql(error: &tokio_postgres::error::DbError) -> ServerError {
        ServerError {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", message(&self.message), plain(&self.code))?;
        if let Some(detail) = &self.detail {
            write!(f, "; {}", message(detail))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {}", message(hint))?;
        }
        Ok(())
    }
}
