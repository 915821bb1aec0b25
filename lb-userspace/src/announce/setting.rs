//! The section `announce` of the node's configuration.

use crate::{
    prefix::Prefix,
    problem::Problem,
    spec::field::{self, Fault},
};
use serde::Deserialize;
use std::time::Duration;

/// Routing table of the driver `route` unless another is named.
pub const DEFAULT_TABLE: u32 = 179;
/// Routing protocol number (rtnetlink(7), `rtm_protocol`) of its routes unless another is named: nobody's so far.
pub const DEFAULT_PROTOCOL: u8 = 179;
/// Protocol numbers up to this one are the kernel's, the administrator's, and those of well-known daemons.
const LAST_TAKEN_PROTOCOL: u8 = 18;
/// Tables that the kernel routes packets by: default, main, local.
const OWN_TABLES: [u32; 3] = [253, 254, 255];
const MAX_HOLD_DOWN: Duration = Duration::from_secs(3_600);
const MAX_DRAIN: Duration = Duration::from_secs(24 * 3_600);
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// A whole, in the unit of shares.
pub const WHOLE: u64 = 10_000;

/// The checked settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// VIPs in none of these are not announced.
    pub allow: Vec<Prefix>,
    /// Healthy share of the weight at which a VIP is announced.
    pub watermarks: Watermarks,
    /// Least time between two announcements of a VIP.
    pub hold_down: Duration,
    /// How the node is drained.
    pub drain: DrainTimes,
    /// How routers are told.
    pub driver: Driver,
}

/// Shares of the weight that is healthy, in 1/100 percent. `up` is not below `down`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// A VIP that is not announced is, once its share is not below this (and above `down`).
    pub up: u64,
    /// One that is announced is withdrawn once its share is not above this.
    pub down: u64,
}

/// How long a node takes to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimes {
    /// How long VIPs are announced as draining, so that all routers have found other ways.
    pub converge: Duration,
    /// How long the node goes on forwarding after they are withdrawn.
    pub linger: Duration,
}

/// How routers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// By routes in a table of their own, which a BGP speaker imports.
    Route(RouteSettings),
    /// By a command.
    Exec(ExecSettings),
}

impl Driver {
    /// Its name in the configuration.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Route(_) => "route",
            Self::Exec(_) => "exec",
        }
    }
}

/// Settings of the driver `route`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    /// Number of the routing table.
    pub table: u32,
    /// Protocol number of the routes.
    pub protocol: u8,
}

/// Settings of the driver `exec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSettings {
    /// Program and first arguments; what to do (`announce`, `drain` or `withdraw`) and the prefix follow. Not empty.
    pub command: Vec<String>,
    /// It is killed after this.
    pub timeout: Duration,
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAnnounce {
    #[serde(default)]
    allow: Vec<String>,
    driver: Option<String>,
    up: Option<String>,
    down: Option<String>,
    hold_down: Option<String>,
    #[serde(default)]
    drain: RawDrain,
    #[serde(default)]
    route: RawRoute,
    #[serde(default)]
    exec: RawExec,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDrain {
    converge: Option<String>,
    linger: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    table: Option<i64>,
    protocol: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExec {
    #[serde(default)]
    command: Vec<String>,
    timeout: Option<String>,
}

/// Checks the section; what is wrong is added to `found`.
pub(crate) fn check(raw: &RawAnnounce, found: &mut Vec<Problem>) -> Settings {
    let allow = allowed(&raw.allow, found);
    let driver = driver(raw, found);
    let mut reader = Reader(found);
    let up = reader.value("up", &raw.up, 0, share);
    let down = reader.value("down", &raw.down, 0, share);
    let span = |most| move |text: &str| field::duration(text, Duration::ZERO, most);
    let seconds = Duration::from_secs;
    let hold_down = reader.value(
        "hold_down",
        &raw.hold_down,
        seconds(10),
        span(MAX_HOLD_DOWN),
    );
    let drain = DrainTimes {
        converge: reader.value(
            "drain.converge",
            &raw.drain.converge,
            seconds(10),
            span(MAX_DRAIN),
        ),
        linger: reader.value(
            "drain.linger",
            &raw.drain.linger,
            seconds(60),
            span(MAX_DRAIN),
        ),
    };
    if up < down {
        let hint = "a VIP is announced at `up` and withdrawn at `down`: make `up` the larger one";
        let (value, message) = (raw.up.as_deref().unwrap_or("0"), "is below announce.down");
        reader.say("up", value, message, hint);
    }
    Settings {
        allow,
        watermarks: Watermarks { up, down },
        hold_down,
        drain,
        driver,
    }
}

fn allowed(raw: &[String], found: &mut Vec<Problem>) -> Vec<Prefix> {
    if raw.is_empty() {
        let hint = "list the prefixes that this node may announce VIPs of, such as `allow: [192.0.2.0/24]`";
        found.push(Problem::new(
            "announce.allow",
            "",
            "is missing or empty",
            hint,
        ));
    }
    let mut allow = Vec::new();
    for (i, text) in raw.iter().enumerate() {
        match text.parse() {
            Ok(prefix) => allow.push(prefix),
            Err(message) => {
                let field = format!("announce.allow[{i}]");
                let hint =
                    "give an address or a prefix of VIPs, such as 192.0.2.0/24 or 2001:db8::/48";
                found.push(Problem::new(field, text, message, hint));
            }
        }
    }
    allow
}

fn driver(raw: &RawAnnounce, found: &mut Vec<Problem>) -> Driver {
    let mut number =
        |name: &str, value: Option<i64>, usual: u32, good: &dyn Fn(u32) -> bool, hint: &str| {
            let value = value.unwrap_or_else(|| i64::from(usual));
            match u32::try_from(value) {
                Ok(number) if good(number) => number,
                _ => {
                    found.push(Problem::new(
                        format!("announce.route.{name}"),
                        value,
                        "cannot be used",
                        hint,
                    ));
                    usual
                }
            }
        };
    let is_free = |table| table != 0 && !OWN_TABLES.contains(&table);
    let hint = "choose 1 to 4294967295 but 253 to 255, a table that nothing else uses";
    let table = number("table", raw.route.table, DEFAULT_TABLE, &is_free, hint);
    let is_own = |protocol| protocol > u32::from(LAST_TAKEN_PROTOCOL) && protocol <= 255;
    let hint = "choose 19 to 255, one that no other daemon here has (/etc/iproute2/rt_protos)";
    let protocol = number(
        "protocol",
        raw.route.protocol,
        DEFAULT_PROTOCOL.into(),
        &is_own,
        hint,
    );
    let protocol = u8::try_from(protocol).unwrap_or(DEFAULT_PROTOCOL);
    let usual = Duration::from_secs(5);
    let span = |text: &str| field::duration(text, MIN_TIMEOUT, MAX_TIMEOUT);
    let timeout = Reader(found).value("exec.timeout", &raw.exec.timeout, usual, span);
    match raw.driver.as_deref() {
        None | Some("route") => {}
        Some("exec") => {
            match raw.exec.command.first() {
                Some(program) if program.starts_with('/') => {}
                first => {
                    let hint = "write program and arguments as a list, such as [/usr/local/bin/announce, --fast]";
                    let given = first.map_or("", String::as_str);
                    let message = "does not start with the absolute path of a program";
                    found.push(Problem::new("announce.exec.command", given, message, hint));
                }
            }
            return Driver::Exec(ExecSettings {
                command: raw.exec.command.clone(),
                timeout,
            });
        }
        Some(other) => {
            let hint =
                "choose route (routes in a table that a BGP speaker imports) or exec (a command)";
            found.push(Problem::new(
                "announce.driver",
                other,
                "is not a driver",
                hint,
            ));
        }
    }
    Driver::Route(RouteSettings { table, protocol })
}

/// Reads single fields of the section.
struct Reader<'a>(&'a mut Vec<Problem>);

impl Reader<'_> {
    fn value<T>(
        &mut self,
        field: &str,
        text: &Option<String>,
        usual: T,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> T {
        let Some(text) = text else { return usual };
        parse(text).unwrap_or_else(|Fault { message, hint }| {
            self.say(field, text, &message, &hint);
            usual
        })
    }

    fn say(&mut self, field: &str, value: &str, message: &str, hint: &str) {
        self.0.push(Problem::new(
            format!("announce.{field}"),
            value,
            message,
            hint,
        ));
    }
}

/// A share in percent, with up to two decimals.
fn share(text: &str) -> Result<u64, Fault> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    match number {
        // In range, so the cast keeps it.
        Ok(share) if (0.0..=100.0).contains(&share) => Ok((share * 100.0).round() as u64),
        _ => Err(Fault::new(
            "is not a share",
            "use 0 to 100, in percent, such as `50%` or `2.5%`",
        )),
    }
}
