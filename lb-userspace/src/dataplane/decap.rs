//! The decapsulator on a backend's interfaces: attached, described and taken off. It has pins of its own, in a directory of
//! the same kind as the balancer's, and no daemon.
//!
//! | name | what |
//! |---|---|
//! | `maps-2-NUMBER/NAME` | the maps of the program that is attached |
//! | `link-INDEX` | the link that keeps the XDP program on an interface |
//! | `tc-INDEX` | the program in traffic control of an interface; its filter holds it as well |
//!
//! **Invariant.** A second attachment takes the place of the first: what is attached follows from the last command alone.

use super::{
    adopt,
    attach::{Attacher, InterfaceSetting},
    interfaces,
    object::DECAP,
    pins::PinDirectory,
    privilege::check_privileges,
};
use crate::prefix::Prefix;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::{
        SchedClassifier, TcAttachType, Xdp,
        tc::{NlOptions, TcAttachOptions, TcError, qdisc_add_clsact, qdisc_detach_program},
    },
};
use lb_common::decap::{
    ADDRESSES, CHECK_HOST, CHECK_SOURCE, CHECK_VIP, CHECKS, COUNTS, LocalKey, MAPS, OF_HOST,
    OF_SERVICE, PORT, Reason, SECOND_CHANCE, SOURCES, TC_PROGRAM, XDP_PROGRAM,
};
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use std::{fs, io, net::IpAddr, path::Path};

/// Version of what the maps mean.
const LAYOUT: u32 = 2;
/// Names of pins in traffic control begin so.
const TC_PIN: &str = "tc-";

/// What to attach, and for which packets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where.
    pub interfaces: Vec<InterfaceSetting>,
    /// In traffic control and not as XDP.
    pub traffic_control: bool,
    /// Outer sources; none: any.
    pub sources: Vec<Prefix>,
    /// Inner destinations; none: any.
    pub vips: Vec<IpAddr>,
    /// Outer destinations; none: the addresses that this host has now.
    pub hosts: Vec<IpAddr>,
    /// UDP port of GUE.
    pub port: u16,
    /// Whether a packet that names a second owner goes on to it where this host has no socket for it. Only with `sources`.
    pub second_chance: bool,
}

impl Settings {
    /// Whether packets are handed on: those of balancers that are known, or anybody could have this host send packets
    /// anywhere.
    fn hands_on(&self) -> bool {
        self.second_chance && !self.sources.is_empty()
    }
}

/// What is attached.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// A line for each interface.
    pub interfaces: Vec<String>,
    /// Packets by what became of them.
    pub packets: Vec<(&'static str, u64)>,
}

/// Attaches the decapsulator, in the place of one that is attached. Returns what was done, a line each.
///
/// # Errors
/// When an interface takes no program; those that did keep it.
pub fn attach(pin_directory: &Path, settings: &Settings) -> Result<Vec<String>> {
    check_privileges()?;
    let pins = PinDirectory::open(pin_directory)?;
    adopt::check_namespace(&pins)?;
    let old = pins.generations()?;
    let new = pins.new_generation(LAYOUT)?;
    let attached = load(settings, &new.path).and_then(|mut object| {
        if settings.traffic_control {
            attach_in_traffic_control(&mut object, &pins, settings)
        } else {
            attach_as_xdp(&mut object, &pins, settings)
        }
    });
    if attached.is_err() && pins.links()?.is_empty() && tc_pins(&pins)?.is_empty() {
        // Nothing is left that would use the maps.
        pins.remove_generation(&new)?;
        for generation in &old {
            pins.remove_generation(generation)?;
        }
        pins.remove()?;
        return attached;
    }
    for generation in &old {
        pins.remove_generation(generation)?;
    }
    attached.map(|mut done| {
        done.push(second_chance(settings).into());
        done
    })
}

/// What becomes of packets that name a second owner.
fn second_chance(settings: &Settings) -> &'static str {
    match (settings.second_chance, settings.hands_on()) {
        (_, true) => "second chance: on",
        (true, false) => {
            "second chance: off, as any source is taken: name the balancers with --from"
        }
        (false, _) => "second chance: off",
    }
}

/// Takes the decapsulator off. Returns what was done, a line each; nothing if it was not attached.
///
/// # Errors
/// When the pin directory is in use, or something cannot be removed.
pub fn detach(pin_directory: &Path) -> Result<Vec<String>> {
    check_privileges()?;
    let Some(pins) = PinDirectory::existing(pin_directory)? else {
        return Ok(Vec::new());
    };
    adopt::check_namespace(&pins)?;
    let mut done = Vec::new();
    for index in pins.links()? {
        pins.remove_link(index)?;
        done.push(format!("detached from {} (XDP)", name_of(index)?));
    }
    done.extend(leave_traffic_control(&pins, &[])?);
    for generation in pins.generations()? {
        pins.remove_generation(&generation)?;
    }
    pins.remove()?;
    Ok(done)
}

/// What is attached, and what it has done; `None` if nothing is.
///
/// # Errors
/// When the kernel does not say.
pub fn status(pin_directory: &Path) -> Result<Option<Status>> {
    check_privileges()?;
    let Some(pins) = PinDirectory::existing(pin_directory)? else {
        return Ok(None);
    };
    let present = interfaces::list()?;
    let mut lines = Vec::new();
    for index in pins.links()? {
        let interface = present.iter().find(|interface| interface.index == index);
        lines.push(match interface {
            Some(interface) => match interface.xdp {
                Some(xdp) => format!(
                    "{}: {} XDP, program {}",
                    interface.name, xdp.mode, xdp.program
                ),
                None => format!(
                    "{}: its XDP program was taken off by somebody; attach again",
                    interface.name
                ),
            },
            None => format!("interface {index} is gone; attach again"),
        });
    }
    for index in tc_pins(&pins)? {
        lines.push(format!("{}: traffic control, ingress", name_of(index)?));
    }
    let generation = pins.generations()?.pop();
    let generation = generation.context("the maps are not pinned any more; attach again")?;
    let map = MapData::from_pin(generation.path.join(COUNTS))
        .with_context(|| format!("cannot open the map {COUNTS}"))?;
    let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
    let count = |reason: Reason| -> Result<(&'static str, u64)> {
        // A decapsulator that an older lbctl attached counts fewer things.
        let count = match counts.get(&(reason as u32), 0) {
            Ok(each) => each.iter().sum(),
            Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok((reason.name(), count))
    };
    Ok(Some(Status {
        interfaces: lines,
        packets: Reason::ALL.into_iter().map(count).collect::<Result<_>>()?,
    }))
}

/// Loads the programs with new maps, filled and pinned below `path`.
fn load(settings: &Settings, path: &Path) -> Result<Ebpf> {
    let mut checks = CHECK_HOST;
    if !settings.sources.is_empty() {
        checks |= CHECK_SOURCE;
    }
    if !settings.vips.is_empty() {
        checks |= CHECK_VIP;
    }
    if settings.hands_on() {
        checks |= SECOND_CHANCE;
    }
    let mut loader = EbpfLoader::new();
    loader.override_global(CHECKS, &checks, true);
    loader.override_global(PORT, &settings.port, true);
    for map in MAPS {
        loader.map_pin_path(map, path.join(map));
    }
    let mut object = loader
        .load(DECAP)
        .context("cannot create the maps of the decapsulator")?;
    let hosts = if settings.hosts.is_empty() {
        own_addresses(&settings.vips)?
    } else {
        settings.hosts.clone()
    };
    let map = object
        .map_mut(ADDRESSES)
        .context("the object has no addresses")?;
    let mut addresses: HashMap<_, LocalKey, u8> = HashMap::try_from(map)?;
    for (kind, list) in [(OF_HOST, &hosts), (OF_SERVICE, &settings.vips)] {
        for address in list {
            let address = (*address).into();
            addresses.insert(LocalKey { address, kind }, 0, 0)?;
        }
    }
    let map = object
        .map_mut(SOURCES)
        .context("the object has no sources")?;
    let mut sources: LpmTrie<_, [u8; 16], u8> = LpmTrie::try_from(map)?;
    for prefix in &settings.sources {
        let (bits, bytes) = prefix.mapped();
        sources.insert(&Key::new(bits, bytes), 0, 0)?;
    }
    Ok(object)
}

fn attach_as_xdp(
    object: &mut Ebpf,
    pins: &PinDirectory,
    settings: &Settings,
) -> Result<Vec<String>> {
    let program = object.program_mut(XDP_PROGRAM);
    let program: &mut Xdp = program
        .with_context(|| format!("the object has no program {XDP_PROGRAM}"))?
        .try_into()?;
    program
        .load()
        .context("the kernel refuses the decapsulator")?;
    let mut attacher = Attacher::new(program, settings.interfaces.clone())?;
    attacher.activate(pins)?;
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for attachment in attacher.look(pins)?.0 {
        match attachment.mode {
            Some(mode) if attachment.note.is_empty() => {
                done.push(format!("attached to {} ({mode} XDP)", attachment.name));
            }
            Some(mode) => done.push(format!(
                "attached to {} ({mode} XDP): {}",
                attachment.name, attachment.note
            )),
            None => refused.push(format!("{}: {}", attachment.name, attachment.note)),
        }
    }
    if !refused.is_empty() {
        bail!(
            "{}; or attach it in traffic control: --mode tc",
            refused.join("; ")
        );
    }
    done.extend(leave_traffic_control(pins, &[])?);
    Ok(done)
}

fn attach_in_traffic_control(
    object: &mut Ebpf,
    pins: &PinDirectory,
    settings: &Settings,
) -> Result<Vec<String>> {
    let program = object.program_mut(TC_PROGRAM);
    let program: &mut SchedClassifier = program
        .with_context(|| format!("the object has no program {TC_PROGRAM}"))?
        .try_into()?;
    program
        .load()
        .context("the kernel refuses the decapsulator")?;
    let present = interfaces::list()?;
    let (mut done, mut kept) = (Vec::new(), Vec::new());
    for InterfaceSetting { name, .. } in &settings.interfaces {
        let interface = present.iter().find(|interface| interface.name == *name);
        let interface = interface.with_context(|| format!("no interface {name}"))?;
        // It may have one; if it cannot have one, attaching says so.
        let _ = qdisc_add_clsact(name);
        remove_filter(name)?;
        let options = TcAttachOptions::Netlink(NlOptions::default());
        let link = program
            .attach_with_options(name, TcAttachType::Ingress, options)
            .with_context(|| {
                format!("{name} takes no program in traffic control (modules sch_ingress and cls_bpf are needed)")
            })?;
        // The filter stays when this process ends: the kernel holds it, not the link.
        std::mem::forget(program.take_link(link)?);
        let pin = pins.path().join(format!("{TC_PIN}{}", interface.index));
        if pin.exists() {
            fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        }
        program
            .pin(&pin)
            .with_context(|| format!("cannot pin {}", pin.display()))?;
        kept.push(interface.index);
        done.push(format!("attached to {name} (traffic control, ingress)"));
    }
    for index in pins.links()? {
        pins.remove_link(index)?;
        done.push(format!("detached from {} (XDP)", name_of(index)?));
    }
    done.extend(leave_traffic_control(pins, &kept)?);
    Ok(done)
}

/// Takes the program out of traffic control of all interfaces but these.
fn leave_traffic_control(pins: &PinDirectory, kept: &[u32]) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for index in tc_pins(pins)?
        .into_iter()
        .filter(|index| !kept.contains(index))
    {
        let name = name_of(index)?;
        let present = interfaces::list()?;
        if present.iter().any(|interface| interface.index == index) {
            remove_filter(&name)?;
        }
        let pin = pins.path().join(format!("{TC_PIN}{index}"));
        fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        done.push(format!("detached from {name} (traffic control)"));
    }
    Ok(done)
}

fn remove_filter(interface: &str) -> Result<()> {
    match qdisc_detach_program(interface, TcAttachType::Ingress, TC_PROGRAM) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(anyhow!(error).context(format!(
            "cannot take the decapsulator out of traffic control of {interface}"
        ))),
    }
}

/// Indexes of the interfaces that have the program in traffic control.
fn tc_pins(pins: &PinDirectory) -> Result<Vec<u32>> {
    let entries = fs::read_dir(pins.path())
        .with_context(|| format!("cannot list {}", pins.path().display()))?;
    let index = |entry: fs::DirEntry| {
        let name = entry.file_name();
        name.to_string_lossy().strip_prefix(TC_PIN)?.parse().ok()
    };
    Ok(entries.flatten().filter_map(index).collect())
}

fn name_of(index: u32) -> Result<String> {
    let present = interfaces::list()?;
    let interface = present
        .into_iter()
        .find(|interface| interface.index == index);
    Ok(interface.map_or_else(
        || format!("interface {index}, which is gone"),
        |interface| interface.name,
    ))
}

/// The addresses of this host's interfaces, `lo` and VIPs apart.
fn own_addresses(vips: &[IpAddr]) -> Result<Vec<IpAddr>> {
    let mut own = Vec::new();
    for interface in getifaddrs().context("cannot list the addresses of this host")? {
        if interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let Some(address) = interface.address else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()));
        own.extend(v4.or(v6).filter(|address| !vips.contains(address)));
    }
    ensure!(
        !own.is_empty(),
        "this host has no address but those of lo and the VIPs; name the tunnels' end with --to ADDRESS"
    );
    Ok(own)
}
