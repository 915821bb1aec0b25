//! The section `announce` of the node's configuration.

use super::bgp::{Attributes, Community, GRACEFUL_SHUTDOWN};
use crate::{
    prefix::Prefix,
    problem::Problem,
    spec::field::{self, Fault},
};
use serde::Deserialize;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

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
/// Where `lbd exabgp` listens unless another place is named.
pub const DEFAULT_SOCKET: &str = "/var/lib/guideway-exabgp/lbd.sock";
/// Where gobgpd listens unless it is told otherwise.
const DEFAULT_API: &str = "127.0.0.1:50051";
/// MED of a node that is drained unless another is named.
const DEFAULT_DRAINING_MED: u32 = 1_000;
/// Most communities in the settings.
const MAX_COMMUNITIES: usize = 32;
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
    /// By ExaBGP, through a process that it runs.
    Exabgp(ExabgpSettings),
    /// By gobgpd, through its gRPC API.
    Gobgp(GobgpSettings),
}

impl Driver {
    /// Its name in the configuration.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Route(_) => "route",
            Self::Exec(_) => "exec",
            Self::Exabgp(_) => "exabgp",
            Self::Gobgp(_) => "gobgp",
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

/// Settings of the driver `exabgp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExabgpSettings {
    /// Where `lbd exabgp` listens.
    pub socket: PathBuf,
    /// What routes say.
    pub attributes: Attributes,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// Settings of the driver `gobgp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GobgpSettings {
    /// Where gobgpd's API listens.
    pub address: SocketAddr,
    /// What routes say.
    pub attributes: Attributes,
    /// Longest wait for an answer.
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
    #[serde(default)]
    exabgp: RawExabgp,
    #[serde(default)]
    gobgp: RawGobgp,
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExabgp {
    socket: Option<String>,
    #[serde(default)]
    next_hop: RawNextHop,
    med: Option<i64>,
    draining_med: Option<i64>,
    #[serde(default)]
    communities: Vec<String>,
    timeout: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGobgp {
    address: Option<String>,
    #[serde(default)]
    next_hop: RawNextHop,
    med: Option<i64>,
    draining_med: Option<i64>,
    #[serde(default)]
    communities: Vec<String>,
    timeout: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNextHop {
    ipv4: Option<String>,
    ipv6: Option<String>,
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
    let route = Driver::Route(route(&raw.route, found));
    let exec = exec(&raw.exec, raw.driver.as_deref() == Some("exec"), found);
    let exabgp = exabgp(&raw.exabgp, found);
    let gobgp = gobgp(&raw.gobgp, found);
    match raw.driver.as_deref() {
        None | Some("route") => route,
        Some("exec") => Driver::Exec(exec),
        Some("exabgp") => Driver::Exabgp(exabgp),
        Some("gobgp") => Driver::Gobgp(gobgp),
        Some(other) => {
            let hint = "choose route (routes in a table that a BGP speaker imports), exabgp, gobgp, or exec (a command)";
            Reader(found).say("driver", other, "is not a driver", hint);
            route
        }
    }
}

fn route(raw: &RawRoute, found: &mut Vec<Problem>) -> RouteSettings {
    let mut reader = Reader(found);
    let is_free = |table| table != 0 && !OWN_TABLES.contains(&table);
    let hint = "choose 1 to 4294967295 but 253 to 255, a table that nothing else uses";
    let table = reader.number("route.table", raw.table, DEFAULT_TABLE, is_free, hint);
    let is_own = |protocol| protocol > u32::from(LAST_TAKEN_PROTOCOL) && protocol <= 255;
    let hint = "choose 19 to 255, one that no other daemon here has (/etc/iproute2/rt_protos)";
    let usual = DEFAULT_PROTOCOL.into();
    let protocol = reader.number("route.protocol", raw.protocol, usual, is_own, hint);
    RouteSettings {
        table,
        protocol: u8::try_from(protocol).unwrap_or(DEFAULT_PROTOCOL),
    }
}

fn exec(raw: &RawExec, is_chosen: bool, found: &mut Vec<Problem>) -> ExecSettings {
    let mut reader = Reader(found);
    let timeout = reader.timeout("exec.timeout", &raw.timeout);
    let first = raw.command.first().map_or("", String::as_str);
    if is_chosen && !first.starts_with('/') {
        let hint =
            "write program and arguments as a list, such as [/usr/local/bin/announce, --fast]";
        let message = "does not start with the absolute path of a program";
        reader.say("exec.command", first, message, hint);
    }
    ExecSettings {
        command: raw.command.clone(),
        timeout,
    }
}

fn exabgp(raw: &RawExabgp, found: &mut Vec<Problem>) -> ExabgpSettings {
    let mut reader = Reader(found);
    let socket = reader.value(
        "exabgp.socket",
        &raw.socket,
        DEFAULT_SOCKET.into(),
        absolute,
    );
    let meds = (raw.med, raw.draining_med);
    ExabgpSettings {
        socket,
        attributes: attributes("exabgp", &raw.next_hop, meds, &raw.communities, &mut reader),
        timeout: reader.timeout("exabgp.timeout", &raw.timeout),
    }
}

fn gobgp(raw: &RawGobgp, found: &mut Vec<Problem>) -> GobgpSettings {
    let mut reader = Reader(found);
    let text = raw.address.clone().or_else(|| Some(DEFAULT_API.into()));
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let address = reader.value("gobgp.address", &text, nowhere, |text| {
        let hint = "write an address and a port such as 127.0.0.1:50051, those of gobgpd's option --api-hosts";
        text.parse()
            .map_err(|_| Fault::new("is no address with a port", hint))
    });
    let meds = (raw.med, raw.draining_med);
    GobgpSettings {
        address,
        attributes: attributes("gobgp", &raw.next_hop, meds, &raw.communities, &mut reader),
        timeout: reader.timeout("gobgp.timeout", &raw.timeout),
    }
}

/// What routes say. `meds`: of a node that serves, and of one that is drained.
fn attributes(
    driver: &str,
    hops: &RawNextHop,
    meds: (Option<i64>, Option<i64>),
    communities: &[String],
    reader: &mut Reader<'_>,
) -> Attributes {
    let field = |name: &str| format!("{driver}.{name}");
    let hop = |is_ipv4| move |text: &str| next_hop(text, is_ipv4);
    let next_hop_v4 = reader.value(&field("next_hop.ipv4"), &hops.ipv4, None, hop(true));
    let next_hop_v6 = reader.value(&field("next_hop.ipv6"), &hops.ipv6, None, hop(false));
    let hint = "choose 0 to 4294967294; routers prefer the lowest";
    let med = reader.number(&field("med"), meds.0, 0, |med| med < u32::MAX, hint);
    let usual = DEFAULT_DRAINING_MED.max(med.saturating_add(1));
    let hint = "choose more than `med`, up to 4294967295, so that routers prefer nodes that are not drained";
    let draining_med = reader.number(
        &field("draining_med"),
        meds.1,
        usual,
        |other| other > med,
        hint,
    );
    if communities.len() > MAX_COMMUNITIES {
        let hint = format!("name {MAX_COMMUNITIES} at most");
        reader.say(
            &field("communities"),
            &communities.len().to_string(),
            "are too many",
            &hint,
        );
    }
    let communities = communities.iter().enumerate().filter_map(|(i, text)| {
        let name = field(&format!("communities[{i}]"));
        reader.value(&name, &Some(text.clone()), None, community)
    });
    Attributes {
        next_hop_v4,
        next_hop_v6,
        med,
        draining_med,
        communities: communities.collect(),
    }
}

fn community(text: &str) -> Result<Option<Community>, Fault> {
    let hint = "write two numbers of 0 to 65535, such as 65001:100";
    match text.parse() {
        Ok(GRACEFUL_SHUTDOWN) => Err(Fault::new(
            "says that a node is drained",
            "leave it out: routes have it while the node is",
        )),
        Ok(community) => Ok(Some(community)),
        Err(message) => Err(Fault::new(message, hint)),
    }
}

/// An address, or none for the speaker's own.
fn next_hop(text: &str, is_ipv4: bool) -> Result<Option<IpAddr>, Fault> {
    if text == "self" {
        return Ok(None);
    }
    let family = if is_ipv4 { "IPv4" } else { "IPv6" };
    let fault = |message: String| {
        let hint = format!("write self, or the {family} address that routers reach this node by");
        Fault::new(message, hint)
    };
    let address: IpAddr = text.parse().map_err(|_| fault("is no address".into()))?;
    if address.is_ipv4() != is_ipv4 {
        return Err(fault(format!("is no {family} address")));
    }
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(fault(
            "is no address of a host that others can reach".into(),
        ));
    }
    Ok(Some(address))
}

fn absolute(text: &str) -> Result<PathBuf, Fault> {
    if !text.starts_with('/') {
        let hint = format!("write the whole path, such as {DEFAULT_SOCKET}");
        return Err(Fault::new("is no absolute path", hint));
    }
    Ok(text.into())
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

    fn number(
        &mut self,
        field: &str,
        value: Option<i64>,
        usual: u32,
        is_good: impl Fn(u32) -> bool,
        hint: &str,
    ) -> u32 {
        let Some(value) = value else { return usual };
        match u32::try_from(value) {
            Ok(number) if is_good(number) => number,
            Ok(_) | Err(_) => {
                self.say(field, &value.to_string(), "cannot be used", hint);
                usual
            }
        }
    }

    /// How long something may take.
    fn timeout(&mut self, field: &str, text: &Option<String>) -> Duration {
        let span = |text: &str| field::duration(text, MIN_TIMEOUT, MAX_TIMEOUT);
        self.value(field, text, Duration::from_secs(5), span)
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
