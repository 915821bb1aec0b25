//! Finds the lines of fields: a second reading of a text that keeps places instead of types. It happens only once
//! something has been refused.

use super::options;
use crate::problem::Problems;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_yaml::Spanned;
use std::fmt;

/// Adds to each problem without a line the line of its field in `text`, or of the innermost part of the field's path
/// that is there. Leaves the problems as they are when `text` is not YAML.
pub fn locate(text: &str, problems: &mut Problems) {
    let Some(document) = Located::read(text) else {
        return;
    };
    for problem in problems
        .0
        .iter_mut()
        .filter(|problem| problem.line.is_none())
    {
        problem.line = document.find(&problem.field).line;
    }
}

/// A document with the place of everything in it.
pub(super) struct Located(Spanned<Node>);

/// Where a field is, and its value if it is a scalar.
pub(super) struct Found {
    pub(super) line: Option<u64>,
    pub(super) scalar: Option<String>,
}

enum Node {
    Scalar(String),
    List(Vec<Spanned<Node>>),
    Fields(Vec<(String, Spanned<Node>)>),
}

impl Located {
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_yaml::from_str_with_options(text, options())
            .ok()
            .map(Self)
    }

    /// Follows a path such as `services[0].backends[2].weight` as far as it goes.
    pub(super) fn find(&self, path: &str) -> Found {
        let mut here = &self.0;
        let mut whole = true;
        for step in path
            .split(['.', '['])
            .map(|step| step.trim_end_matches(']'))
            .filter(|step| !step.is_empty())
        {
            match here.value.child(step) {
                Some(child) => here = child,
                None => {
                    whole = false;
                    break;
                }
            }
        }
        let scalar = match &here.value {
            Node::Scalar(text) if whole => Some(text.clone()),
            Node::Scalar(_) | Node::List(_) | Node::Fields(_) => None,
        };
        Found {
            line: Some(here.referenced.line()).filter(|line| *line > 0),
            scalar,
        }
    }
}

impl Node {
    fn child(&self, step: &str) -> Option<&Spanned<Node>> {
        match self {
            Self::Scalar(_) => None,
            Self::List(items) => items.get(step.parse::<usize>().ok()?),
            Self::Fields(fields) => fields
                .iter()
                .find(|(name, _)| name == step)
                .map(|(_, value)| value),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar("null".into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = access.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Fields(fields))
    }
}
