//! Reads and writes YAML. Whatever is wrong with a text is a [`Problem`] with its line, field and value.
//!
//! **Invariant.** Reading is bounded: in bytes, in depth, in nodes, and in what aliases may expand to.

mod locate;

pub use locate::locate;

use super::{nearest, raw::StateSpec};
use crate::problem::{Problem, Problems};
use locate::Located;
use serde::{Serialize, de::DeserializeOwned};
use serde_yaml::{Error, Options, budget::BudgetBreach};

/// Longest text that is read, in bytes; a state of 16,384 backends takes about 1 MiB.
pub const MAX_BYTES: usize = 8 << 20;

/// Reads a desired state. Values are not checked yet: see [`super::State::parse`].
///
/// # Errors
/// As [`parse`].
pub fn state_from_str(text: &str) -> Result<StateSpec, Problems> {
    parse(text, "write `services: []` if nothing is what you mean")
}

/// Reads one YAML document. An empty text is refused, with `empty_hint`: it is a mistake more often than a wish.
///
/// # Errors
/// The first thing in the text that does not fit `T`, with its line.
pub fn parse<T: DeserializeOwned>(text: &str, empty_hint: &str) -> Result<T, Problems> {
    if text.len() > MAX_BYTES {
        let hint = format!("give at most {} MiB", MAX_BYTES >> 20);
        return Err(Problem::new(
            "",
            format!("{} bytes", text.len()),
            "the text is too long",
            hint,
        )
        .into());
    }
    let mut path = String::new();
    let parsed =
        serde_yaml::with_deserializer_from_str_with_options(text, options(), |deserializer| {
            serde_path_to_error::deserialize::<_, Option<T>>(deserializer).map_err(|error| {
                path = error.path().to_string();
                error.into_inner()
            })
        });
    match parsed {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(Problem::new("", "", "the text is empty", empty_hint).into()),
        Err(error) => Err(refusal(text, &path, &error).into()),
    }
}

/// Writes a value as YAML.
///
/// # Errors
/// When the value is of a kind that YAML cannot hold; none of ours are.
pub fn to_string<T: Serialize>(value: &T) -> anyhow::Result<String> {
    let options = serde_yaml::ser_options! { compact_list_indent: false };
    Ok(serde_yaml::to_string_with_options(value, options)?)
}

fn options() -> Options {
    serde_yaml::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_yaml::budget! {
            max_documents: 1,
            max_depth: 16,
            max_nodes: 1_000_000,
            max_events: 2_000_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 8,
        },
    }
}

/// What serde's error means to the person who wrote the text. `path` is the innermost field it was about.
fn refusal(text: &str, path: &str, error: &Error) -> Problem {
    // serde_path_to_error writes `.` for the whole document and `?` for a key that could not be read.
    let path = path.trim_end_matches('?').trim_matches('.');
    let field = |name: &str| {
        if path.is_empty() {
            name.into()
        } else {
            format!("{path}.{name}")
        }
    };
    let wrong_type = |expected: &str| {
        let given = Located::read(text).and_then(|document| document.find(path).scalar);
        Problem::new(
            path,
            given.unwrap_or_default(),
            format!("must be {}", plain(expected)),
            "",
        )
    };
    let mut problem = match innermost(error) {
        Error::SerdeUnknownField {
            field: name,
            expected,
            ..
        } => {
            let hint = match nearest(name, expected.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", expected.join(", ")),
            };
            Problem::new(path, "", "unknown field", hint)
        }
        Error::SerdeMissingField { field: name, .. } => {
            Problem::new(field(name), "", "is missing", format!("add `{name}: ...`"))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let name = key.as_deref().unwrap_or_default();
            Problem::new(field(name), "", "is given twice", "keep one of the two")
        }
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            wrong_type(expected)
        }
        Error::Unexpected { expected, .. } => wrong_type(expected),
        Error::InvalidScalar { ty, .. } => wrong_type(ty),
        Error::InvalidBooleanStrict { .. } => wrong_type("bool"),
        Error::NullIntoString { .. } => wrong_type("string"),
        Error::MultipleDocuments { .. }
        | Error::Budget {
            breach: BudgetBreach::Documents { .. },
            ..
        } => Problem::new("", "", "more than one document (`---`)", "give one"),
        Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. } => Problem::new(
            path,
            "",
            error.to_string(),
            "the text is larger or deeper than any state can be",
        ),
        _ => Problem::new(path, "", error.to_string(), ""),
    };
    // The reader notices that a field is missing only at the end of its group; the group's start is what helps.
    problem.line = match innermost(error) {
        Error::SerdeMissingField { .. } => {
            Located::read(text).and_then(|document| document.find(path).line)
        }
        _ => error
            .location()
            .map(|location| location.line())
            .filter(|line| *line > 0),
    };
    problem
}

/// The error itself, without the alias through which it was reached.
fn innermost(error: &Error) -> &Error {
    match error.without_snippet() {
        Error::AliasError { error, .. } => innermost(error),
        other => other,
    }
}

/// The parser's names of types in plain words.
fn plain(expected: &str) -> &str {
    match expected {
        "i64" | "u64" | "i32" | "u32" | "u16" | "signed integer" | "unsigned integer" => {
            "a whole number"
        }
        "string" | "a string" | "string scalar" => "text",
        "bool" | "boolean" | "a boolean" => "`true` or `false`",
        "sequence" | "sequence start" | "a sequence" => "a list",
        "mapping" | "mapping start" | "a map" => "a group of fields",
        other if other.starts_with("struct ") => "a group of fields",
        other => other,
    }
}

#[cfg(test)]
mod tests;
