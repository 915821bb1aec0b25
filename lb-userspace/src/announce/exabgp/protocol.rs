//! What `lbd` and `lbd exabgp` say to each other on the unix socket: a line of JSON each way for each request. A connection
//! ends when another one has changed what is announced.

use crate::announce::bgp::{Route, Routes};
use crate::prefix::Prefix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio_util::codec::LinesCodec;

/// Longest line, in bytes: room for some hundred thousand routes.
const MAX_LINE: usize = 32 << 20;
/// Most communities of a route that are taken: those of a message of BGP are not many more.
const MAX_COMMUNITIES: usize = 256;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What is announced.
    Look,
    /// To announce these routes and no others.
    Announce(Routes),
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// What is announced now.
    pub routes: Routes,
    /// What went wrong with single routes.
    pub failed: BTreeMap<Prefix, String>,
    /// What keeps all of it from being done.
    pub problem: Option<String>,
}

impl Reply {
    /// Nothing is known but this.
    pub fn problem(problem: impl Into<String>) -> Self {
        Self {
            problem: Some(problem.into()),
            ..Self::default()
        }
    }
}

/// Reads a request.
///
/// # Errors
/// What is wrong with it.
pub fn parse(line: &str) -> Result<Request, String> {
    let request: Request =
        serde_json::from_str(line).map_err(|error| format!("is no request: {error}"))?;
    if let Request::Announce(routes) = &request
        && let Some((prefix, problem)) = routes.iter().find_map(fault)
    {
        return Err(format!("{prefix}: {problem}"));
    }
    Ok(request)
}

/// What makes a route one that cannot be.
fn fault((prefix, route): (&Prefix, &Route)) -> Option<(Prefix, &'static str)> {
    let other = |hop: std::net::IpAddr| hop.is_ipv4() != prefix.is_ipv4();
    if route.next_hop.is_some_and(other) {
        return Some((*prefix, "its next hop is of the other family"));
    }
    (route.communities.len() > MAX_COMMUNITIES).then_some((*prefix, "it has too many communities"))
}

/// Lines of bounded length.
pub fn lines() -> LinesCodec {
    LinesCodec::new_with_max_length(MAX_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_no_more_than_routes() {
        let text = r#"{"announce":{"192.0.2.1":{"next_hop":null,"med":7,"local_pref":null,"communities":["65535:0"]}}}"#;
        let Request::Announce(routes) = parse(text).unwrap() else {
            panic!("{text}")
        };
        let prefix: Prefix = "192.0.2.1".parse().unwrap();
        assert_eq!(routes[&prefix].med, 7);
        assert_eq!(
            serde_json::to_string(&Request::Announce(routes)).unwrap(),
            text
        );
        assert_eq!(parse("\"look\""), Ok(Request::Look));
        for (bad, said) in [
            ("", "is no request"),
            ("announce route 192.0.2.1/32 next-hop self", "is no request"),
            (
                &text.replace("192.0.2.1", "192.0.2.1 next-hop self\\nshutdown"),
                "is no request",
            ),
            (
                &text.replace("65535:0", "65535:0\\nshutdown"),
                "is no community",
            ),
            (
                &text.replace("null,\"med", "\"fd00::1\",\"med"),
                "of the other family",
            ),
            (&text.replace("\"med\"", "\"mde\""), "is no request"),
        ] {
            let refused = parse(bad).unwrap_err();
            assert!(refused.contains(said), "{bad}: {refused}");
        }
    }
}
