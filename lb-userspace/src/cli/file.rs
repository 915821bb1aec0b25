//! The file that `apply` reads and `export` writes.

use super::report::Failure;
use crate::{
    api::protocol::{ErrorBody, ErrorCode},
    digest::DigestView,
    problem::Problems,
    spec::{StateSpec, yaml},
};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// A file as it was read.
pub(super) struct Document {
    name: String,
    text: String,
}

/// Reads a file, or standard input for `-`. No more is read than a state may have, so that a wrong file, such as a
/// disk, does no harm.
pub(super) fn read(path: &Path) -> Result<Document, Failure> {
    let (name, source) = if path == Path::new("-") {
        (
            "standard input".to_owned(),
            Ok(Box::new(io::stdin()) as Box<dyn Read>),
        )
    } else {
        let file = File::open(path).map(|file| Box::new(file) as Box<dyn Read>);
        (path.display().to_string(), file)
    };
    let limit = yaml::MAX_BYTES;
    let mut text = String::new();
    let read = source.and_then(|source| source.take(limit as u64 + 1).read_to_string(&mut text));
    match read {
        Ok(size) if size > limit => {
            let mib = limit >> 20;
            Err(Failure::local(format!(
                "{name} is larger than {mib} MiB: is it the right file?"
            )))
        }
        Ok(_) => Ok(Document { name, text }),
        Err(error) => Err(Failure::local(format!("cannot read {name}: {error}"))),
    }
}

impl Document {
    /// The state in the file.
    pub(super) fn state(&self) -> Result<StateSpec, Failure> {
        yaml::state_from_str(&self.text).map_err(|Problems(problems)| {
            let message = format!("{} does not describe a state", self.name);
            let code = ErrorCode::Malformed;
            Failure::in_file(
                &self.name,
                ErrorBody {
                    code,
                    message,
                    problems,
                },
            )
        })
    }

    /// The name of the file, as a person is told it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The digest in the file.
    pub(super) fn digest(&self) -> Result<DigestView, Failure> {
        serde_json::from_str(&self.text).map_err(|error| {
            let message = format!(
                "{} is not an answer to `lbctl digest --output json`: {error}",
                self.name
            );
            ErrorBody::new(ErrorCode::Malformed, message).into()
        })
    }

    /// What `lbd` said of the file's content, with the lines it could not know.
    pub(super) fn locate(&self, mut refusal: ErrorBody) -> Failure {
        let mut problems = Problems(refusal.problems);
        yaml::locate(&self.text, &mut problems);
        refusal.problems = problems.0;
        Failure::in_file(&self.name, refusal)
    }
}

/// The file that describes `state`.
pub(super) fn to_yaml(state: &StateSpec) -> Result<String, Failure> {
    yaml::to_string(state)
        .map_err(|error| Failure::local(format!("cannot write the state as YAML: {error}")))
}
