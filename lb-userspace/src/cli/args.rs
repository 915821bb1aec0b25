//! What a person may type. Values are only parsed here; whether they are valid is `lbd`'s to say, so that the words
//! are the same everywhere.

use crate::{
    api::{
        handle::{ChangeOptions, Percent},
        socket::DEFAULT_SOCKET,
    },
    prefix::Prefix,
    spec::{BackendPatch, BackendSpec, HealthSpec, QuicSpec, ServiceSpec},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_common::gue::DEFAULT_PORT;
use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

/// Where help shows what every command takes: after its own options.
const HEADING: &str = "Options of every command";

/// Look at and change a running Guideway load balancer (lbd).
#[derive(Debug, Parser)]
#[command(
    name = "lbctl",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "\
Examples:
  lbctl status
  lbctl service add www --address 192.0.2.1 --port 80
  lbctl backend add web-1 --service www --address 198.51.100.11
  lbctl backend list
  lbctl backend drain web-1 --wait
  lbctl export > services.yaml; lbctl apply -f services.yaml --dry-run

Exit status: 0 done, 1 refused or failed, 2 wrong usage.")]
pub struct Cli {
    /// Socket of lbd
    #[arg(long, global = true, value_name = "PATH", env = "GUIDEWAY_SOCKET")]
    #[arg(default_value = DEFAULT_SOCKET, hide_env_values = true, help_heading = HEADING)]
    pub socket: PathBuf,
    /// Form of answers and errors: for people, or the API's own types
    #[arg(long, short, global = true, value_name = "FORM", value_enum)]
    #[arg(default_value_t = Output::Table, help_heading = HEADING)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

// The variants have no doc comments because clap would turn them into a long list in every command's help.
/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how the node is
    #[command(
        after_help = "Examples:\n  lbctl status\n  lbctl status --output json | jq -r .condition"
    )]
    Status,
    /// Show traffic by service and backend, and packets by verdict
    #[command(after_help = "Examples:\n  lbctl stats\n  lbctl stats --all")]
    Stats {
        /// Show verdicts that no packet got, too
        #[arg(long)]
        all: bool,
    },
    /// Add, remove and show services
    #[command(
        subcommand,
        after_help = "Examples:\n  lbctl service list\n  lbctl service show www"
    )]
    Service(ServiceCommand),
    /// Add, remove, change and show backends
    #[command(
        subcommand,
        after_help = "Examples:\n  lbctl backend list\n  lbctl backend set web-1 --weight 50"
    )]
    Backend(BackendCommand),
    /// Make the services and backends exactly those of a file
    #[command(after_help = "\
Examples:
  lbctl apply -f services.yaml --dry-run
  lbctl apply -f services.yaml --if-revision 7 --max-move 10%
  generate-services | lbctl apply -f -

What the file does not name is removed. `lbctl export` writes such a file.")]
    Apply {
        /// YAML or JSON file; - is standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        removal: Removal,
    },
    /// Write the services and backends as a file for `apply`
    #[command(
        after_help = "Examples:\n  lbctl export > services.yaml\n  lbctl export --output json"
    )]
    Export,
    /// List backends that get no new flows and may still have old ones
    #[command(
        after_help = "Examples:\n  lbctl drains\n  lbctl drains --output json | jq '.[].safe'"
    )]
    Drains,
    /// Show what this node must have in common with the others of its fleet, or compare it with theirs
    #[command(after_help = "\
Examples:
  lbctl digest
  lbctl digest --output json > node-1.json
  lbctl digest --compare node-1.json

With --compare the exit status is 1 if the nodes differ so that a flow may not go to the same backend
on both.")]
    Digest {
        /// File with the other node's answer to `lbctl digest --output json`; - is standard input
        #[arg(long, value_name = "FILE")]
        compare: Option<PathBuf>,
    },
    /// Show what the running program would do with a packet, stage by stage, and why
    #[command(after_help = "\
Examples:
  lbctl explain tcp 198.51.100.9:40000 192.0.2.1:443
  lbctl explain tcp 198.51.100.9:40000 192.0.2.1:443 --flags ack --size 1500
  lbctl explain udp [2001:db8::9]:5353 [2001:db8::1]:53 --interface eth0
  lbctl explain icmp 198.51.100.9 192.0.2.1
  lbctl explain --pcap strange.pcapng --packets 3

It leaves no trace in counters or the flow table.")]
    Explain(Box<Explain>),
    /// Show packets as they come, with what becomes of each and why
    #[command(after_help = "\
Examples:
  lbctl trace --count 20
  lbctl trace --service www --source 198.51.100.0/24
  lbctl trace --reason drops --pcap drops.pcapng
  lbctl trace --reason drop_no_backend,pass_no_service --sample 1/100

While it runs, a slower program is attached in place of the usual one; end it with Ctrl-C. A capture
has two interfaces: `in` for packets as they came, `out` for them as they left.")]
    Trace(Box<Trace>),
    /// Show which VIPs are announced to routers, and why or why not
    #[command(
        subcommand,
        after_help = "Examples:\n  lbctl announce list\n  lbctl announce show 192.0.2.1"
    )]
    Announce(AnnounceCommand),
    /// Take this node out of traffic and back
    #[command(
        subcommand,
        after_help = "Examples:\n  lbctl node drain --wait\n  lbctl node undrain"
    )]
    Node(NodeCommand),
    /// List the newest revisions of the services and backends
    #[command(after_help = "Examples:\n  lbctl history\n  lbctl history --output json")]
    History,
    /// Go back to the services and backends of an earlier revision
    #[command(after_help = "\
Examples:
  lbctl rollback 6 --dry-run
  lbctl rollback 6

What it brings back is a new revision, so that a rollback can be rolled back.")]
    Rollback {
        /// The revision, from `lbctl history`
        #[arg(value_name = "REVISION")]
        revision: u64,
        #[command(flatten)]
        removal: Removal,
    },
    /// Make a host a backend: print what it needs, check it, decapsulate on it
    #[command(
        subcommand,
        after_help = "Examples:\n  lbctl backend-kit setup --service www --backend web-1\n  lbctl backend-kit status"
    )]
    BackendKit(KitCommand),
    /// Write a completion script for a shell
    #[command(after_help = "\
Examples:
  lbctl completions bash > /etc/bash_completion.d/lbctl
  lbctl completions zsh > \"${fpath[1]}/_lbctl\"")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the OpenAPI document of lbd's API
    #[command(hide = true, after_help = "Examples:\n  lbctl openapi > guideway.json")]
    Openapi,
}

/// Commands on announcements.
#[derive(Debug, Subcommand)]
pub enum AnnounceCommand {
    /// List the VIPs
    #[command(
        after_help = "Examples:\n  lbctl announce list\n  lbctl announce list --output json | jq -r '.[].reason'"
    )]
    List,
    /// Show one VIP
    #[command(after_help = "Examples:\n  lbctl announce show 192.0.2.1")]
    Show {
        /// Its address or prefix
        address: Prefix,
    },
}

/// Commands on the node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Show how the node attracts traffic
    #[command(
        after_help = "Examples:\n  lbctl node show\n  lbctl node show --output json | jq -r .state"
    )]
    Show,
    /// Have routers send traffic elsewhere, so that the node can be stopped
    #[command(after_help = "\
Examples:
  lbctl node drain
  lbctl node drain --wait --timeout 5m

Its VIPs are announced as draining, then withdrawn; it goes on forwarding. With --wait the exit status
is 0 once the node can be stopped, and 1 if it is not known to be; the drain then goes on. The drain
survives a restart of lbd.")]
    Drain {
        /// Wait until it can be stopped
        #[arg(long)]
        wait: bool,
        /// Wait at most this long, such as 5m
        #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
    },
    /// End the drain: announce again what can be served
    #[command(after_help = "Examples:\n  lbctl node undrain")]
    Undrain,
}

/// A packet to explain, or a capture of some.
#[derive(Debug, Args)]
pub struct Explain {
    /// Protocol: tcp, udp, or icmp for an echo request
    #[arg(
        value_name = "PROTOCOL",
        required_unless_present = "pcap",
        conflicts_with = "pcap"
    )]
    pub protocol: Option<String>,
    /// Address and port of the sender, such as 198.51.100.9:40000; for icmp the address alone
    #[arg(value_name = "SOURCE", required_unless_present = "pcap")]
    pub source: Option<String>,
    /// Address and port that it is sent to
    #[arg(value_name = "DESTINATION", required_unless_present = "pcap")]
    pub destination: Option<String>,
    /// TCP flags, such as ack or fin,ack [default: syn]
    #[arg(long, value_name = "FLAGS", conflicts_with = "pcap")]
    pub flags: Option<String>,
    /// Bytes of the IP packet [default: as small as can be]
    #[arg(long, value_name = "BYTES", conflicts_with = "pcap")]
    pub size: Option<u16>,
    /// What follows the UDP or TCP header, in hexadecimal digits, such as the start of a QUIC packet
    #[arg(long, value_name = "HEX", conflicts_with = "pcap")]
    pub payload: Option<String>,
    /// Interface that it comes in on [default: the first that is attached]
    #[arg(long, value_name = "INTERFACE")]
    pub interface: Option<String>,
    /// Explain the packets of a pcap or pcapng file
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// How many of them at most, from the first on
    #[arg(long, value_name = "COUNT", default_value_t = 10, requires = "pcap")]
    pub packets: usize,
}

/// Which packets are traced.
#[derive(Debug, Args)]
pub struct Trace {
    /// Only packets of this service
    #[arg(long, short, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only packets of senders in this prefix
    #[arg(long, value_name = "PREFIX")]
    pub source: Option<String>,
    /// Only packets with these verdicts: names from `lbctl stats --all`, drops, passes, all [default: all]
    #[arg(long, value_name = "VERDICTS")]
    pub reason: Option<String>,
    /// Only one packet in so many, such as 1/100 [default: 1/1]
    #[arg(long, value_name = "SHARE")]
    pub sample: Option<Sample>,
    /// Packets a second on each CPU at most [default: 1000]
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<u32>,
    /// End after so many packets
    #[arg(long, value_name = "COUNT")]
    pub count: Option<u64>,
    /// Write them to a pcapng file, too
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
}

/// One in so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample(pub u32);

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("1/").unwrap_or(text);
        number
            .parse()
            .map(Self)
            .map_err(|_| "not a share; give one like 1/100".into())
    }
}

/// Commands on services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Add a service; add its backends afterwards
    #[command(after_help = "\
Examples:
  lbctl service add www --address 192.0.2.1 --port 80
  lbctl service add www6 --address 2001:db8::1 --port 443 --mode l2 --when-all-down closed
  lbctl service add dns --address 192.0.2.53 --port 53 --protocol udp --health none
  lbctl service add www --address 192.0.2.1 --port 80 --health-interval 500ms --health-fall 2
  lbctl service add edge --address 203.0.113.0/24 --port 443
  lbctl service add shop --address 192.0.2.1 --port 443 --hash source-ip
  lbctl service add www --address 192.0.2.1 --port 80 --drain-timeout 10m --slow-start 60s")]
    Add(Box<ServiceAdd>),
    /// Remove a service and its backends
    #[command(
        after_help = "Examples:\n  lbctl service remove www --dry-run\n  lbctl service remove www --if-revision 7"
    )]
    Remove {
        /// Name of the service
        name: String,
        #[command(flatten)]
        removal: Removal,
    },
    /// List the services
    #[command(after_help = "Examples:\n  lbctl service list\n  lbctl service list --output json")]
    List,
    /// Show a service and its backends
    #[command(after_help = "Examples:\n  lbctl service show www")]
    Show {
        /// Name of the service
        name: String,
    },
}

/// A new service.
#[derive(Debug, Args)]
pub struct ServiceAdd {
    /// Name: 1-63 letters, digits, '.', '_' or '-'
    pub name: String,
    /// IPv4 or IPv6 address of the service, or a prefix such as 192.0.2.0/24 for all its addresses
    #[arg(long, value_name = "ADDRESS")]
    pub address: String,
    /// Port; 0 is any port that no other service names
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub port: i64,
    /// Transport protocol
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp"])]
    pub protocol: String,
    /// How packets reach the backends: encapsulated in IP or in UDP, or with the destination MAC rewritten
    #[arg(long, default_value = "ipip", value_parser = ["ipip", "gue", "l2"])]
    pub mode: String,
    /// UDP port that the backends take GUE on [default: 6080]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub gue_port: Option<i64>,
    /// What finds a flow its backend: the whole flow, or the client alone [default: 5-tuple]
    #[arg(long, value_name = "WHAT", value_parser = ["5-tuple", "source-ip", "source-ip-port"])]
    pub hash: Option<String>,
    /// When all backends are down: send to all (open), or drop (closed)
    #[arg(long, value_name = "POLICY", default_value = "open", value_parser = ["open", "closed"])]
    pub when_all_down: String,
    /// Answer pings to the service's address
    #[arg(long)]
    pub echo: bool,
    /// Route by QUIC connection ID, each with a server ID of so many octets, 1 to 8; UDP only
    #[arg(long, value_name = "OCTETS", allow_negative_numbers = true)]
    pub quic_server_id_length: Option<i64>,
    /// Config rotation of those IDs, 0 to 6 [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        requires = "quic_server_id_length"
    )]
    pub quic_config_rotation: Option<i64>,
    /// How the backends are probed [default: tcp for TCP services with a port]
    #[arg(long, value_name = "TYPE", value_parser = ["tcp", "none"])]
    pub health: Option<String>,
    /// Port to probe [default: the service's]
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub health_port: Option<i64>,
    /// Time between probes of a backend, such as 2s or 500ms [default: 2s]
    #[arg(long, value_name = "DURATION")]
    pub health_interval: Option<String>,
    /// Time after which a probe has failed [default: 1s]
    #[arg(long, value_name = "DURATION")]
    pub health_timeout: Option<String>,
    /// Successes in a row that bring a backend up [default: 2]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub health_rise: Option<i64>,
    /// Failures in a row that bring a backend down [default: 3]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub health_fall: Option<i64>,
    /// Random share of the interval, in percent [default: 10]
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    pub health_jitter: Option<i64>,
    /// Established flows that a change does not move: those of the slots it moves, all, or none [default: moved]
    #[arg(long, value_name = "WHICH", value_parser = ["moved", "all", "none"])]
    pub tracking: Option<String>,
    /// Flows of a backend that goes down: reset them, or keep them with it [default: reset]
    #[arg(long, value_name = "POLICY", value_parser = ["reset", "keep"])]
    pub on_down: Option<String>,
    /// How long flows stay with a backend that is drained or removed, 1s to 24h [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// How long unknown UDP flows still go to a slot's old owner, 0s to 1h [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub udp_settle: Option<String>,
    /// Time in which a backend that has come up gets its full share, up to 1h [default: at once]
    #[arg(long, value_name = "DURATION")]
    pub slow_start: Option<String>,
    #[command(flatten)]
    pub making: Making,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, Args)]
pub struct Making {
    /// Change nothing, only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse if another revision than this is in force
    #[arg(long, value_name = "REVISION")]
    pub if_revision: Option<u64>,
    /// Refuse if more than this share of the slots of a service would move, such as 10%
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    pub max_move: Option<Percent>,
}

/// How a change is made that may remove something.
#[derive(Clone, Copy, Debug, Args)]
pub struct Removal {
    #[command(flatten)]
    making: Making,
    /// End the established flows of what is removed at once
    #[arg(long)]
    now: bool,
}

impl From<Making> for ChangeOptions {
    fn from(making: Making) -> Self {
        Self {
            dry_run: making.dry_run,
            if_revision: making.if_revision,
            max_move: making.max_move,
            now: false,
        }
    }
}

impl From<Removal> for ChangeOptions {
    fn from(removal: Removal) -> Self {
        Self {
            now: removal.now,
            ..removal.making.into()
        }
    }
}

/// Commands on backends.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Add a backend to a service
    #[command(after_help = "\
Examples:
  lbctl backend add web-1 --service www --address 198.51.100.11
  lbctl backend add web-2 --service www --address 198.51.100.12 --weight 50 --dry-run")]
    Add {
        /// Name, unique in the service
        name: String,
        /// Service to add it to
        #[arg(long, short, value_name = "SERVICE")]
        service: String,
        /// Address of the backend itself, not of the service
        #[arg(long, value_name = "ADDRESS")]
        address: String,
        /// Share of the traffic relative to the other backends, 0 to 1000
        #[arg(
            long,
            value_name = "WEIGHT",
            default_value_t = 100,
            allow_negative_numbers = true
        )]
        weight: i64,
        /// Server ID in its QUIC connection IDs, in hexadecimal digits, for services with quic
        #[arg(long, value_name = "HEX")]
        server_id: Option<String>,
        #[command(flatten)]
        making: Making,
    },
    /// Remove a backend from a service
    #[command(after_help = "\
Examples:
  lbctl backend remove web-1 --service www --dry-run
  lbctl backend remove web-1
  lbctl backend remove web-1 --now

Its established flows stay with it for the service's drain timeout, unless --now is given.")]
    Remove {
        #[command(flatten)]
        backend: BackendName,
        #[command(flatten)]
        removal: Removal,
    },
    /// Change a backend's weight or address
    #[command(after_help = "\
Examples:
  lbctl backend set web-1 --weight 0
  lbctl backend set web-1 --service www --address 198.51.100.21 --dry-run")]
    Set {
        #[command(flatten)]
        backend: BackendName,
        #[command(flatten)]
        change: BackendChange,
        #[command(flatten)]
        making: Making,
    },
    /// Let a backend finish: no new flows, those it has stay for the service's drain timeout
    #[command(after_help = "\
Examples:
  lbctl backend drain web-1 --dry-run
  lbctl backend drain web-1 --wait --timeout 10m
  lbctl backend drain web-1 --service www

One name is one host: without --service it is drained in every service that has it. With --wait the
exit status is 0 once the host can be stopped without harm to a flow, and 1 if it is not known to be;
the drain then goes on.")]
    Drain {
        /// Name of the backend
        name: String,
        /// Only in this service
        #[arg(long, short, value_name = "SERVICE")]
        service: Option<String>,
        /// Wait until it can be stopped
        #[arg(long, conflicts_with = "dry_run")]
        wait: bool,
        /// Wait at most this long, such as 10m
        #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
        #[command(flatten)]
        making: Making,
    },
    /// End the drain of a backend: it gets new flows again
    #[command(after_help = "\
Examples:
  lbctl backend undrain web-1
  lbctl backend undrain web-1 --service www")]
    Undrain {
        /// Name of the backend
        name: String,
        /// Only in this service
        #[arg(long, short, value_name = "SERVICE")]
        service: Option<String>,
        #[command(flatten)]
        making: Making,
    },
    /// List backends, with the reason if one gets no traffic
    #[command(after_help = "Examples:\n  lbctl backend list\n  lbctl backend list --service www")]
    List {
        /// Only those of this service
        #[arg(long, short, value_name = "SERVICE")]
        service: Option<String>,
    },
}

/// Commands of the backend kit.
#[derive(Debug, Subcommand)]
pub enum KitCommand {
    /// Print the commands that make a plain Linux host a backend (asks lbd)
    #[command(after_help = "\
Examples:
  lbctl backend-kit setup --service www --backend web-1
  lbctl backend-kit setup --service www --backend web-1 | ssh web-1 sudo sh")]
    Setup {
        /// The service
        #[arg(long, short, value_name = "SERVICE")]
        service: String,
        /// The backend [default: all of the service]
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
    },
    /// Say what keeps this host from being a backend, and what mends it
    #[command(after_help = "\
Examples:
  lbctl backend-kit check --vip 192.0.2.1 --mode ipip --address 198.51.100.11
  lbctl backend-kit check --vip 192.0.2.1 --mode gue --address 198.51.100.11 --port 80

The exit status is 1 if something is wrong.")]
    Check(Check),
    /// Decapsulate IP in IP and GUE on interfaces of this host, for hosts without tunnel modules
    #[command(after_help = "\
Examples:
  lbctl backend-kit attach --interface eth0
  lbctl backend-kit attach --interface eth0 --vip 192.0.2.1 --from 203.0.113.0/24
  lbctl backend-kit attach --interface eth0 --mode tc

It takes the place of what was attached before, stays when lbctl has ended, and is gone after a
restart of the host. Everything that is not a balancer's is left as it is.")]
    Attach(Attach),
    /// Stop decapsulating
    #[command(after_help = "Examples:\n  lbctl backend-kit detach")]
    Detach {
        #[command(flatten)]
        pins: Pins,
    },
    /// Show what is attached and what became of the packets
    #[command(
        after_help = "Examples:\n  lbctl backend-kit status\n  lbctl backend-kit status --output json"
    )]
    Status {
        #[command(flatten)]
        pins: Pins,
    },
}

/// Where the backend kit keeps what it attaches.
#[derive(Debug, Args)]
pub struct Pins {
    /// Directory of its pins, on a BPF file system
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/sys/fs/bpf/guideway-backend"
    )]
    pub pin_directory: PathBuf,
}

/// What a backend is checked for.
#[derive(Debug, Args)]
pub struct Check {
    /// The service's address, or its prefix
    #[arg(long, value_name = "ADDRESS")]
    pub vip: Prefix,
    /// The service's mode
    #[arg(long, value_parser = ["ipip", "gue", "l2"])]
    pub mode: String,
    /// This backend's address, as the service has it
    #[arg(long, value_name = "ADDRESS")]
    pub address: IpAddr,
    /// The service's port: whether something listens there
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The service's protocol
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp"])]
    pub protocol: String,
    /// UDP port of GUE
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub gue_port: u16,
    #[command(flatten)]
    pub pins: Pins,
}

/// What is attached where.
#[derive(Debug, Args)]
pub struct Attach {
    /// Where packets of the balancer come in (may be given more than once)
    #[arg(long, required = true, value_name = "INTERFACE")]
    pub interface: Vec<String>,
    /// Only packets for this service's address (may be given more than once)
    #[arg(long, value_name = "ADDRESS")]
    pub vip: Vec<IpAddr>,
    /// Only from these balancers (may be given more than once)
    #[arg(long, value_name = "PREFIX")]
    pub from: Vec<Prefix>,
    /// Tunnels' end [default: the addresses that this host has now, those of lo and VIPs apart]
    #[arg(long, value_name = "ADDRESS")]
    pub to: Vec<IpAddr>,
    /// How: XDP in the driver or else generic (xdp), either of them alone, or traffic control
    #[arg(long, value_enum, default_value_t = AttachBy::Xdp)]
    pub mode: AttachBy,
    /// UDP port of GUE
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub gue_port: u16,
    /// Hand packets that name another owner of their flow on to it, once, where this host has no socket for them; needs --from
    /// [default: on with --from]
    #[arg(long, value_enum)]
    pub second_chance: Option<Switch>,
    #[command(flatten)]
    pub pins: Pins,
}

// No doc comments on the variants: see Output.
/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

// No doc comments on the variants: see Output.
/// How the decapsulator is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachBy {
    Xdp,
    Native,
    Generic,
    Tc,
}

/// A backend that exists.
#[derive(Debug, Args)]
pub struct BackendName {
    /// Name of the backend
    pub name: String,
    /// Its service; may be left out when only one has a backend of this name
    #[arg(long, short, value_name = "SERVICE")]
    pub service: Option<String>,
}

/// What changes of a backend.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct BackendChange {
    /// New weight, 0 to 1000
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub weight: Option<i64>,
    /// New address
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// New server ID in its QUIC connection IDs
    #[arg(long, value_name = "HEX")]
    pub server_id: Option<String>,
}

impl From<ServiceAdd> for ServiceSpec {
    fn from(add: ServiceAdd) -> Self {
        let health = HealthSpec {
            kind: add.health,
            port: add.health_port,
            interval: add.health_interval,
            timeout: add.health_timeout,
            rise: add.health_rise,
            fall: add.health_fall,
            jitter_percent: add.health_jitter,
        };
        Self {
            name: add.name,
            address: add.address,
            protocol: add.protocol,
            port: add.port,
            mode: add.mode,
            gue_port: add.gue_port,
            hash: add.hash,
            when_all_down: add.when_all_down,
            health: Some(health).filter(|health| *health != HealthSpec::default()),
            tracking: add.tracking,
            on_down: add.on_down,
            drain_timeout: add.drain_timeout,
            udp_settle: add.udp_settle,
            slow_start: add.slow_start,
            echo: add.echo,
            quic: add.quic_server_id_length.map(|server_id_length| QuicSpec {
                config_rotation: add.quic_config_rotation.unwrap_or(0),
                server_id_length,
            }),
            backends: Vec::<BackendSpec>::new(),
        }
    }
}

impl From<BackendChange> for BackendPatch {
    fn from(change: BackendChange) -> Self {
        Self {
            address: change.address,
            weight: change.weight,
            drain: None,
            server_id: change.server_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_and_an_example_that_parses() {
        fn check(path: &str, command: &clap::Command) {
            assert!(command.get_about().is_some(), "{path} has no help");
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let examples: Vec<_> = help
                .lines()
                .filter_map(|line| line.strip_prefix("  "))
                .collect();
            assert!(!examples.is_empty(), "{path} has no example");
            for example in examples {
                let typed = example
                    .split(['|', '>', ';'])
                    .find(|part| part.contains("lbctl "))
                    .unwrap();
                Cli::try_parse_from(typed.split_whitespace())
                    .unwrap_or_else(|error| panic!("{example}: {error}"));
            }
            for sub in command.get_subcommands() {
                check(&format!("{path} {}", sub.get_name()), sub);
            }
        }
        check("lbctl", &Cli::command());
    }

    fn service_add(args: &str) -> ServiceSpec {
        let line = format!("lbctl service add www --address 192.0.2.1 --port 80 {args}");
        match Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        {
            Command::Service(ServiceCommand::Add(add)) => (*add).into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_has_a_probe_only_if_something_is_said_of_it() {
        assert_eq!(service_add("").health, None);
        let spec = service_add("--health-fall 2").health.unwrap();
        assert_eq!(
            spec,
            HealthSpec {
                fall: Some(2),
                ..HealthSpec::default()
            }
        );
    }

    #[test]
    fn values_out_of_range_are_left_to_lbd() {
        assert_eq!(
            service_add("--health-port 70000").health.unwrap().port,
            Some(70_000)
        );
        assert_eq!(
            service_add("--health-rise -1").health.unwrap().rise,
            Some(-1)
        );
    }
}
