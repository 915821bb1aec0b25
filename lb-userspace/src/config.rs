//! The node's own settings: a YAML file, read at start and on SIGHUP. Services and backends are not here: they are the
//! desired state (`spec`).

use crate::{
    announce::setting::{self, RawAnnounce, Settings as AnnounceSettings},
    api::socket::DEFAULT_SOCKET,
    dataplane::{AttachMode, InterfaceSetting},
    outer_source::{self, OuterSource},
    problem::{Problem, Problems},
    spec::yaml,
};
use lb_common::limits;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Where the daemon looks for its configuration unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/guideway/lbd.yaml";

/// The checked settings of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Interfaces that packets come in on or leave by; at least one.
    pub interfaces: Vec<InterfaceSetting>,
    /// Directory of the desired state.
    pub state_directory: PathBuf,
    /// Directory on a bpffs for links and maps.
    pub pin_directory: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Group that may use the socket besides root.
    pub group: Option<String>,
    /// Address of the Prometheus endpoint; none: off.
    pub metrics: Option<SocketAddr>,
    /// Seed of the flow hash; the same on all nodes of a fleet.
    pub hash_seed: u64,
    /// Source address of outer headers.
    pub outer_source: OuterSource,
    /// How VIPs are announced; none: they are not.
    pub announce: Option<AnnounceSettings>,
    /// Most services.
    pub max_services: u32,
    /// Most backends over all services.
    pub max_backends: u32,
    /// Entries of the flow table.
    pub max_flows: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    interfaces: Vec<RawInterface>,
    #[serde(default = "default_state_directory")]
    state_directory: String,
    #[serde(default = "default_pin_directory")]
    pin_directory: String,
    #[serde(default, deserialize_with = "group")]
    api: Option<RawApi>,
    #[serde(default, deserialize_with = "group")]
    metrics: Option<RawMetrics>,
    #[serde(default)]
    hash_seed: u64,
    #[serde(default, deserialize_with = "group")]
    outer_source: Option<RawOuterSource>,
    #[serde(default, deserialize_with = "group")]
    announce: Option<RawAnnounce>,
    #[serde(default, deserialize_with = "group")]
    limits: Option<RawLimits>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInterface {
    name: String,
    attach: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApi {
    socket: Option<String>,
    group: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOuterSource {
    ipv4: Option<String>,
    ipv6: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    services: Option<i64>,
    backends: Option<i64>,
    flows: Option<i64>,
}

/// A group of fields that was written. `metrics:` with nothing behind it is a slip more often than a wish to have none.
fn group<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    match Option::deserialize(from)? {
        Some(group) => Ok(Some(group)),
        None => Err(D::Error::custom(
            "is empty; write its fields, or leave it out",
        )),
    }
}

fn default_state_directory() -> String {
    "/var/lib/guideway".into()
}

fn default_pin_directory() -> String {
    "/sys/fs/bpf/guideway".into()
}

impl NodeConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with the line.
    pub fn read(path: &Path) -> Result<Self, Problems> {
        let unreadable = |error: std::io::Error| {
            let hint = format!(
                "name the file with --config (default {DEFAULT_PATH}); an example is in deploy/lbd.yaml"
            );
            Problem::new("", "", format!("cannot be read: {error}"), hint)
        };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text)
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with the line.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let raw: RawConfig = yaml::parse(text, "an example is in deploy/lbd.yaml")?;
        check(raw).map_err(|mut problems| {
            yaml::locate(text, &mut problems);
            problems
        })
    }

    /// Says which configured interfaces are not among those that exist. That is no error: they may come later.
    pub fn missing_interfaces(&self, existing: &[String]) -> Vec<Problem> {
        let hint = format!(
            "lbd starts without it and attaches once it is there; interfaces here: {}",
            existing.join(", ")
        );
        self.interfaces
            .iter()
            .enumerate()
            .filter(|(_, interface)| !existing.contains(&interface.name))
            .map(|(i, interface)| {
                let field = format!("interfaces[{i}].name");
                Problem::new(field, &interface.name, "no such interface", hint.as_str())
            })
            .collect()
    }
}

fn check(raw: RawConfig) -> Result<NodeConfig, Problems> {
    let mut found = Vec::new();
    let (api, limit_fields) = (raw.api.unwrap_or_default(), raw.limits.unwrap_or_default());
    let interfaces = interfaces(&raw.interfaces, &mut found);
    let mut directory = |field: &str, text: &str| {
        let path = PathBuf::from(text);
        if !path.is_absolute() {
            found.push(Problem::new(
                field,
                text,
                "is not an absolute path",
                "start it with /",
            ));
        }
        path
    };
    let state_directory = directory("state_directory", &raw.state_directory);
    let pin_directory = directory("pin_directory", &raw.pin_directory);
    let socket = directory(
        "api.socket",
        api.socket.as_deref().unwrap_or(DEFAULT_SOCKET),
    );
    let metrics = raw.metrics.and_then(|metrics| {
        let problem = |_| {
            let hint = "write address and port, such as 127.0.0.1:9469 or [::1]:9469";
            found.push(Problem::new(
                "metrics.address",
                &metrics.address,
                "is not a socket address",
                hint,
            ));
        };
        metrics.address.parse().map_err(problem).ok()
    });
    let outer_source = outer_source(&raw.outer_source.unwrap_or_default(), &mut found);
    let announce = raw.announce.map(|raw| setting::check(&raw, &mut found));
    let mut limit = |field: &str, value: Option<i64>, default: u32, min: u32, max: u32| {
        let value = value.unwrap_or_else(|| i64::from(default));
        match u32::try_from(value) {
            Ok(good) if (min..=max).contains(&good) => good,
            _ => {
                found.push(Problem::new(
                    field,
                    value,
                    "is out of range",
                    format!("choose {min} to {max}"),
                ));
                default
            }
        }
    };
    let max_services = limit(
        "limits.services",
        limit_fields.services,
        limits::DEFAULT_SERVICES,
        1,
        limits::MAX_SERVICES / 2,
    );
    let max_backends = limit(
        "limits.backends",
        limit_fields.backends,
        limits::DEFAULT_BACKENDS,
        1,
        limits::MAX_BACKENDS / 2 - 1,
    );
    let max_flows = limit(
        "limits.flows",
        limit_fields.flows,
        limits::DEFAULT_FLOWS,
        limits::MIN_FLOWS,
        limits::MAX_FLOWS,
    );
    let config = NodeConfig {
        interfaces,
        state_directory,
        pin_directory,
        socket,
        group: api.group,
        metrics,
        hash_seed: raw.hash_seed,
        outer_source,
        announce,
        max_services,
        max_backends,
        max_flows,
    };
    Problems::or(found, config)
}

fn outer_source(raw: &RawOuterSource, found: &mut Vec<Problem>) -> OuterSource {
    let mut family = |field: &str, text: &Option<String>, v4: bool| {
        let text = text.as_deref()?;
        outer_source::parse(text, v4)
            .map_err(|(message, hint)| found.push(Problem::new(field, text, message, hint)))
            .ok()
    };
    OuterSource {
        ipv4: family("outer_source.ipv4", &raw.ipv4, true),
        ipv6: family("outer_source.ipv6", &raw.ipv6, false),
    }
}

fn interfaces(raw: &[RawInterface], found: &mut Vec<Problem>) -> Vec<InterfaceSetting> {
    if raw.is_empty() {
        found.push(Problem::new(
            "interfaces",
            "",
            "is empty",
            "name at least one, such as `- name: eth0`",
        ));
    }
    if raw.len() > limits::MAX_EXITS as usize {
        let hint = format!("name at most {}", limits::MAX_EXITS);
        found.push(Problem::new("interfaces", raw.len(), "are too many", hint));
    }
    let mut interfaces: Vec<InterfaceSetting> = Vec::new();
    for (i, interface) in raw.iter().enumerate() {
        let field = format!("interfaces[{i}]");
        let name = &interface.name;
        if !is_interface_name(name) {
            let hint = "use the kernel's name, 1 to 15 characters, as `ip link` shows it";
            found.push(Problem::new(
                format!("{field}.name"),
                name,
                "is not an interface name",
                hint,
            ));
        }
        if interfaces.iter().any(|other| other.name == *name) {
            found.push(Problem::new(
                format!("{field}.name"),
                name,
                "is listed twice",
                "remove one",
            ));
        }
        let attach = match interface.attach.as_deref() {
            None | Some("auto") => AttachMode::Auto,
            Some("native") => AttachMode::Native,
            Some("generic") => AttachMode::Generic,
            Some(other) => {
                let hint = "choose auto (native, else generic with a warning), native or generic";
                found.push(Problem::new(
                    format!("{field}.attach"),
                    other,
                    "is not a way to attach",
                    hint,
                ));
                AttachMode::Auto
            }
        };
        interfaces.push(InterfaceSetting {
            name: name.clone(),
            attach,
        });
    }
    interfaces
}

/// The kernel's rule (`dev_valid_name`): 1 to 15 bytes, not `.` or `..`, no `/`, `:` or white space.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_file_has_defaults() {
        let config = NodeConfig::parse("interfaces:\n  - name: eth0\n").unwrap();
        assert_eq!(
            config.interfaces,
            [InterfaceSetting {
                name: "eth0".into(),
                attach: AttachMode::Auto
            }]
        );
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.metrics, None);
        assert_eq!((config.max_services, config.max_backends), (1024, 16384));
        assert_eq!(config.max_flows, 262_144);
    }

    #[test]
    fn the_shipped_example_is_valid() {
        let config = NodeConfig::parse(include_str!("../../deploy/lbd.yaml")).unwrap();
        assert!(!config.interfaces.is_empty());
    }

    #[test]
    fn every_problem_is_named_with_its_line_and_value() {
        let text = "interfaces:
  - name: eth0
    attach: turbo
  - name: eth0
  - name: not/a/name
state_directory: var/lib
metrics:
  address: localhost
limits:
  services: 0
  backends: 99999999
  flows: 0
outer_source:
  ipv4: 172.31.0.0/20
  ipv6: 172.31.0.0/16
";
        let problems = NodeConfig::parse(text).unwrap_err().0;
        let seen: Vec<(String, String, Option<u64>)> = problems
            .iter()
            .map(|problem| (problem.field.clone(), problem.value.clone(), problem.line))
            .collect();
        let expected = [
            ("interfaces[0].attach", "turbo", 3),
            ("interfaces[1].name", "eth0", 4),
            ("interfaces[2].name", "not/a/name", 5),
            ("state_directory", "var/lib", 6),
            ("metrics.address", "localhost", 8),
            ("outer_source.ipv4", "172.31.0.0/20", 14),
            ("outer_source.ipv6", "172.31.0.0/16", 15),
            ("limits.services", "0", 10),
            ("limits.backends", "99999999", 11),
            ("limits.flows", "0", 12),
        ];
        let expected =
            expected.map(|(field, value, line)| (field.to_owned(), value.to_owned(), Some(line)));
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_flow_table_has_bounds() {
        let parse = |flows: i64| {
            NodeConfig::parse(&format!(
                "interfaces: [{{ name: lo }}]\nlimits: {{ flows: {flows} }}\n"
            ))
        };
        for good in [1_024, 1_025, 16_777_216] {
            assert_eq!(i64::from(parse(good).unwrap().max_flows), good);
        }
        for bad in [-1, 0, 1, 1_023, 16_777_217, i64::MAX] {
            let said = parse(bad).unwrap_err().to_string();
            let hint =
                format!("limits.flows: is out of range (given: {bad}); choose 1024 to 16777216");
            assert!(said.contains(&hint), "{said}");
        }
    }

    #[test]
    fn interfaces_that_do_not_exist_are_named_beside_those_that_do() {
        let config = NodeConfig::parse("interfaces: [{ name: lo }, { name: eth7 }]").unwrap();
        let missing = config.missing_interfaces(&["lo".into(), "eth0".into()]);
        let said: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "interfaces[1].name: no such interface (given: eth7); lbd starts without it and attaches once it is there; \
              interfaces here: lo, eth0"
            ]
        );
    }

    #[test]
    fn a_group_with_nothing_behind_it_is_refused() {
        for group in ["api", "metrics", "outer_source", "announce", "limits"] {
            let text = format!("interfaces:\n  - name: eth0\n{group}:\n");
            let said = NodeConfig::parse(&text).unwrap_err().to_string();
            let expected = format!("{group}: is empty; write its fields, or leave it out");
            assert!(said.contains(&expected), "{said}");
        }
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line() {
        let problem = NodeConfig::parse("interfaces:\n  - name: eth0\nhash_sead: 7\n")
            .unwrap_err()
            .to_string();
        assert!(
            problem.contains("hash_sead") && problem.contains("line 3"),
            "{problem}"
        );
    }
}
