//! The file that `apply` reads and `export` writes.

use super::report::Failure;
use crate::{
    api::protocol::{ErrorBody, ErrorCode},
    problem::Problem,
    spec::StateSpec,
};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Larger than any state `lbd` takes; keeps a wrong file, such as a disk, out of memory.
const LIMIT: u64 = 8 << 20;

/// A file as it was read.
pub(super) struct Document {
    name: String,
    text: String,
}

/// Reads a file, or standard input for `-`.
pub(super) fn read(path: &Path) -> Result<Document, Failure> {
    let (name, source) = if path == Path::new("-") {
        (
            "standard input".to_owned(),
            Ok(Box::new(io::stdin()) as Box<dyn Read>),
        )
    } else {
        (
            path.display().to_string(),
            File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
        )
    };
    let mut text = String::new();
    let read = source.and_then(|source| source.take(LIMIT + 1).read_to_string(&mut text));
    match read {
        Ok(size) if size as u64 > LIMIT => Err(Failure::local(format!(
            "{name} is larger than {} MiB: is it the right file?",
            LIMIT >> 20
        ))),
        Ok(_) => Ok(Document { name, text }),
        Err(error) => Err(Failure::local(format!("cannot read {name}: {error}"))),
    }
}

impl Document {
    /// The state in the file.
    pub(super) fn state(&self) -> Result<StateSpec, Failure> {
        serde_yaml::from_str(&self.text).map_err(|error| {
            let mut problem = Problem::new("", "", error.without_snippet().to_string(), "");
            problem.line = error.location().map(|location| location.line());
            let message = format!("{} does not describe a state", self.name);
            Failure::in_file(
                &self.name,
                ErrorBody {
                    code: ErrorCode::Malformed,
                    message,
                    problems: vec![problem],
                },
            )
        })
    }

    /// What `lbd` said of the file's content.
    pub(super) fn locate(&self, refusal: ErrorBody) -> Failure {
        Failure::in_file(&self.name, refusal)
    }
}

/// The file that describes `state`.
pub(super) fn to_yaml(state: &StateSpec) -> Result<String, Failure> {
    serde_yaml::to_string(state)
        .map_err(|error| Failure::local(format!("cannot write the state as YAML: {error}")))
}
