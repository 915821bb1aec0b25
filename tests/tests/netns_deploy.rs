//! Every block of docs/deploy.md, run as it is written on hosts that were empty before, with traffic under way where the document
//! promises that none is lost; and what is wrong is wrong when the document says what to do about it.

use anyhow::{Context, Result, ensure};
use lb_tests::{
    host::Host,
    netns::Namespace,
    process::Process,
    recipe::{Block, sections},
    require,
    session::Session,
    topology::{Layout, Topology, VIP_V4, VIP_V6},
    wait::wait_until,
};
use std::{collections::BTreeMap, fs, path::Path, thread::sleep, time::Duration};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(40);
/// Longest time of a block.
const BLOCK: Duration = Duration::from_secs(90);
/// Files that the document names and that are there once the other speakers are.
const SPEAKERS: [&str; 4] = [
    "deploy/frr-lb.conf",
    "deploy/frr-router.conf",
    "deploy/exabgp.conf",
    "deploy/gobgpd.toml",
];

fn document() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/deploy.md");
    fs::read_to_string(path).context(path)
}

/// Empty hosts on one network. Fields are dropped in this order, names and files last.
struct Site {
    hosts: BTreeMap<String, Host>,
    _second: Namespace,
    _topology: Topology,
    session: Session,
}

impl Site {
    fn set_up() -> Result<Self> {
        let session = Session::unique();
        let directory = session.directory();
        fs::create_dir_all(&directory)?;
        let topology = Topology::create(&session, Layout::Bridged, 3)?;
        let second = topology.add_balancer_on_segment(&session)?;
        for (vip, length) in [(VIP_V4.to_string(), 32), (VIP_V6.to_string(), 128)] {
            topology.router.ip(&format!("route del {vip}/{length}"))?;
            for backend in &topology.backends {
                let namespace = &backend.namespace;
                namespace.ip(&format!("address del {vip}/{length} dev lo"))?;
            }
        }
        let mut hosts = BTreeMap::new();
        let backends = topology.backends.iter().map(|backend| &backend.namespace);
        let names = ["web-1", "web-2", "web-3"].into_iter().zip(backends);
        let others = [
            ("client", &topology.client),
            ("router", &topology.router),
            ("lb-1", &topology.balancer),
            ("lb-2", &second),
        ];
        for (name, namespace) in names.chain(others) {
            hosts.insert(name.into(), Host::new(namespace, name, &directory)?);
        }
        Ok(Self {
            hosts,
            _second: second,
            _topology: topology,
            session,
        })
    }

    fn host(&self, name: &str) -> Result<&Host> {
        self.hosts
            .get(name)
            .with_context(|| format!("no host {name}"))
    }

    fn run(&self, host: &str, commands: &str) -> Result<String> {
        self.host(host)?.run(commands, BLOCK)
    }

    /// Copies a file from one host to another, as the document has the reader do.
    fn copy(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let [from, to] =
            [self.host(from)?, self.host(to)?].map(|host| host.work_directory().join(file));
        fs::copy(&from, to).with_context(|| from.display().to_string())?;
        Ok(())
    }

    /// The blocks of a section, to be run one by one.
    fn guide(&self, heading: &str) -> Result<Guide<'_>> {
        let blocks = sections(&document()?)?.remove(heading);
        let blocks = blocks.with_context(|| format!("no section {heading}"))?;
        Ok(Guide {
            site: self,
            blocks: blocks.into_iter(),
        })
    }

    /// Waits until `lbd` of a host answers.
    fn wait_lbd(&self, host: &str) -> Result<()> {
        let host = self.host(host)?;
        wait_until("lbd to answer", LIMIT, || {
            Ok(host.lbctl("status").is_ok().then_some(()))
        })
        .with_context(|| host.log("lbd"))
    }

    /// Waits until a command on a host says what it should, or no longer does.
    fn wait_said(&self, host: &str, command: &str, words: &str, there: bool) -> Result<String> {
        let what = format!("{command} on {host}: {words} ({there})");
        let mut last = String::new();
        wait_until(&what, LIMIT, || {
            last = self.run(host, command)?;
            Ok((last.contains(words) == there).then_some(()))
        })
        .with_context(|| last.clone())?;
        Ok(last)
    }

    /// Requests of the client, one after the other, until they are counted.
    fn requests(&self, url: &str) -> Result<Requests> {
        let script = format!(
            "while :; do curl --silent --show-error --fail --insecure --max-time 3 --output /dev/null {url} && echo good || echo BAD; \
             sleep 0.02; done"
        );
        let mut command = self.host("client")?.command("sh");
        command.args(["-c", &script]);
        let log = self.session.directory().join("requests.log");
        // Of an earlier run there may be none.
        let _ = fs::remove_file(&log);
        let process = Process::start("requests", command, &log)?;
        Ok(Requests(process))
    }
}

/// Requests under way.
struct Requests(Process);

impl Requests {
    fn good(&self) -> usize {
        self.0.log().lines().filter(|line| *line == "good").count()
    }

    /// Expects some more, and that none has failed so far.
    fn none_failed(&self) -> Result<()> {
        let before = self.good();
        wait_until("five more requests", LIMIT, || {
            Ok((self.good() > before + 5).then_some(()))
        })?;
        let log = self.0.log();
        let failed: Vec<&str> = log.lines().filter(|line| *line != "good").collect();
        ensure!(failed.is_empty(), "{failed:?} of {} requests", self.good());
        Ok(())
    }
}

/// A section on its way.
struct Guide<'a> {
    site: &'a Site,
    blocks: std::vec::IntoIter<Block>,
}

impl Guide<'_> {
    /// Runs the next block; what it says.
    fn step(&mut self) -> Result<String> {
        let Block::On(hosts, commands) = self.blocks.next().context("no block is left")? else {
            anyhow::bail!("a block names no host");
        };
        println!("--- on {hosts:?}:\n{commands}");
        let mut said = String::new();
        for host in hosts {
            said += &self.site.run(&host, &commands)?;
        }
        println!("{said}");
        Ok(said)
    }

    /// Runs the next block, which fails; what it says.
    fn fails(&mut self) -> Result<String> {
        match self.step() {
            Ok(said) => anyhow::bail!("it did not fail: {said}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    fn steps(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.step().map(drop))
    }

    fn finish(self) -> Result<()> {
        let rest = self.blocks.len();
        ensure!(rest == 0, "{rest} blocks were not run");
        Ok(())
    }
}

fn on_site(packages: &[(&str, &str)], test: impl FnOnce(&Site) -> Result<()>) -> Result<()> {
    let has = |(command, package): &(&str, &str)| require::command(command, package);
    if !require::network() || !packages.iter().all(has) {
        return Ok(());
    }
    let site = Site::set_up()?;
    let outcome = test(&site);
    if outcome.is_err() {
        for (name, host) in &site.hosts {
            for unit in [
                "lbd",
                "lbd-watchdog",
                "keepalived",
                "bird",
                "haproxy",
                "nginx",
            ] {
                let log = host.log(unit);
                if !log.is_empty() {
                    eprintln!("--- {unit} on {name} ---\n{log}");
                }
            }
        }
    }
    outcome
}

#[test]
fn the_sections_are_those_that_are_run_and_name_files_that_exist() -> Result<()> {
    let text = document()?;
    let headings: Vec<_> = sections(&text)?.into_keys().collect();
    assert_eq!(
        headings,
        [
            "A fleet with BGP",
            "One node",
            "Two nodes with keepalived",
            "Two tiers",
            "Upgrade and rollback",
            "What to do when"
        ]
    );
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let ends = |c: char| !(c.is_ascii_alphanumeric() || "./_-".contains(c));
    for word in text.split(ends).map(|word| word.trim_end_matches('.')) {
        let named =
            word.starts_with("deploy/") || word.ends_with(".md") || word.starts_with("tests/");
        if !named || word == "deploy/" || SPEAKERS.contains(&word) {
            continue;
        }
        let there = [root.join(word), root.join("docs").join(word)];
        assert!(
            there.iter().any(|path| path.exists()),
            "{word} does not exist"
        );
    }
    Ok(())
}

/// From empty hosts to one node with traffic.
fn one_node(site: &Site) -> Result<()> {
    let mut guide = site.guide("One node")?;
    guide.step()?;
    site.wait_lbd("lb-1")?;
    guide.step()?;
    let check = guide.step()?;
    assert!(!check.contains("wrong"), "{check}");
    guide.steps(2)?;
    site.wait_said("lb-1", "lbctl backend list", "down", false)?;
    let said = guide.step()?;
    assert!(said.contains("forward"), "{said}");
    let page = guide.step()?;
    assert!(page.contains("nginx"), "{page}");
    let stats = guide.step()?;
    assert!(stats.contains("www"), "{stats}");
    guide.finish()
}

#[test]
fn one_node_is_upgraded_and_rolled_back_without_a_failed_request() -> Result<()> {
    on_site(&[], |site| {
        one_node(site)?;
        let requests = site.requests("http://10.0.0.1/")?;
        requests.none_failed()?;
        let mut guide = site.guide("Upgrade and rollback")?;
        guide.steps(2)?;
        site.wait_lbd("lb-1")?;
        let status = guide.step()?;
        assert!(status.contains("web-2"), "{status}");
        requests.none_failed()?;
        guide.step()?;
        site.wait_lbd("lb-1")?;
        guide.step()?;
        guide.finish()?;
        requests.none_failed()?;
        assert!(site.host("lb-1")?.log("lbd").contains("was adopted"));

        // As an older lbd finds it that comes back over a change of layout: the version is in the name.
        let newer = "systemctl stop lbd
            for maps in /sys/fs/bpf/guideway/maps-*; do mv $maps /sys/fs/bpf/guideway/maps-99-1; done
            systemctl start lbd";
        site.run("lb-1", newer)?;
        site.wait_lbd("lb-1")?;
        let log = site.host("lb-1")?.log("lbd");
        assert!(
            log.contains("cannot read maps of layout version 99"),
            "{log}"
        );
        site.wait_said("lb-1", "lbctl backend list", "no:", false)?;
        requests.none_failed()?;

        // And the state of a newer version.
        let newer = r#"systemctl stop lbd
            sed -i 's/"format": *[0-9]*/"format": 99/' /var/lib/guideway/state*.json
            systemctl start lbd"#;
        site.run("lb-1", newer)?;
        site.wait_lbd("lb-1")?;
        let status = site.run("lb-1", "lbctl status")?;
        assert!(
            status.contains("the data plane is left as it is"),
            "{status}"
        );
        requests.none_failed()?;
        site.run(
            "lb-1",
            "lbctl apply -f /var/lib/guideway-before/services.yaml",
        )?;
        let status = site.run("lb-1", "lbctl status")?;
        assert!(!status.contains("left as it is"), "{status}");
        requests.none_failed()
    })
}

#[test]
fn proxies_see_the_client_and_are_drained_without_a_failed_request() -> Result<()> {
    let packages = [
        ("haproxy", "haproxy"),
        ("curl", "curl"),
        ("openssl", "openssl"),
    ];
    on_site(&packages, |site| {
        one_node(site)?;
        let mut guide = site.guide("Two tiers")?;
        guide.steps(4)?;
        site.wait_said("lb-1", "lbctl backend list --service tls", "down", false)?;
        let said = guide.step()?;
        assert!(
            said.starts_with("asked by 10.1.0.2, through 10.2.0.1"),
            "{said}"
        );
        let ask = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
            curl --silent --max-time 5 --insecure https://10.0.0.1/
        done";
        let said = site.run("client", ask)?;
        for proxy in ["10.2.0.11", "10.2.0.12"] {
            let words = format!("asked by 10.1.0.2, through {proxy}");
            assert!(said.contains(&words), "{said}");
        }

        let requests = site.requests("https://10.0.0.1/")?;
        requests.none_failed()?;
        guide.step()?;
        let drained = site.run("client", ask)?;
        assert!(!drained.contains("10.2.0.11"), "{drained}");
        guide.step()?;
        requests.none_failed()?;
        site.wait_said("lb-1", "lbctl backend list --service tls", "down", false)?;
        guide.step()?;
        site.wait_said("client", ask, "through 10.2.0.11", true)?;
        requests.none_failed()?;
        guide.finish()
    })
}

#[test]
fn a_pair_with_keepalived_moves_its_vips() -> Result<()> {
    on_site(&[("keepalived", "keepalived"), ("curl", "curl")], |site| {
        let mut guide = site.guide("Two nodes with keepalived")?;
        guide.step()?;
        let holder = |host: &str| -> Result<bool> {
            let said = site.run(host, "ip -brief address show dev eth0")?;
            Ok(said.contains("10.2.0.100/32") && said.contains("fd00:2::100/128"))
        };
        sleep(Duration::from_secs(2));
        assert!(
            !holder("lb-1")? && !holder("lb-2")?,
            "held before lbd has spoken"
        );
        guide.step()?;
        for host in ["lb-1", "lb-2"] {
            site.wait_lbd(host)?;
        }
        guide.steps(2)?;
        for host in ["lb-1", "lb-2"] {
            let list = "lbctl announce list --output json";
            wait_until("both VIPs to be announced", LIMIT, || {
                let said = site.run(host, list)?;
                Ok((said.matches("\"state\": \"announced\"").count() == 2).then_some(()))
            })
            .with_context(|| site.run(host, "lbctl announce list").unwrap_or_default())?;
        }
        wait_until("one to hold both VIPs", LIMIT, || {
            Ok((holder("lb-1")? != holder("lb-2")?).then_some(()))
        })?;
        let said = guide.step()?;
        assert!(said.contains("10.2.0.100/32"), "{said}");
        let pages = guide.step()?;
        assert!(pages.matches("<title>").count() == 2, "{pages}");
        guide.step()?;
        site.copy("lb-1.json", "lb-1", "lb-2")?;
        guide.step()?;

        let requests = site.requests("http://10.2.0.100/")?;
        requests.none_failed()?;
        // lb-1 is to hold them first, so that there is something to drain.
        if holder("lb-2")? {
            site.run(
                "lb-2",
                "lbctl node drain --wait --timeout 1m; lbctl node undrain",
            )?;
        }
        wait_until("lb-1 to hold both VIPs", LIMIT, || {
            Ok(holder("lb-1")?.then_some(()))
        })?;
        let drained = guide.step()?;
        assert!(drained.contains("safe to stop"), "{drained}");
        assert!(!drained.contains("10.2.0.100"), "{drained}");
        assert!(holder("lb-2")?);
        guide.step()?;
        requests.none_failed()?;
        guide.finish()
    })
}

/// From empty hosts to two nodes that announce to a router.
fn fleet(site: &Site) -> Result<()> {
    let mut guide = site.guide("A fleet with BGP")?;
    guide.steps(4)?;
    for host in ["lb-1", "lb-2"] {
        site.wait_lbd(host)?;
    }
    guide.steps(2)?;
    for node in ["10.2.0.2", "10.2.0.3"] {
        site.wait_said("router", "ip route show 10.0.0.1", node, true)?;
    }
    guide.step()?;
    let page = guide.step()?;
    assert!(page.contains("nginx"), "{page}");
    guide.finish()
}

#[test]
fn a_fleet_announces_and_what_goes_wrong_with_it_is_found() -> Result<()> {
    on_site(&[("bird", "bird2"), ("curl", "curl")], |site| {
        fleet(site)?;
        let mut guide = site.guide("What to do when")?;

        println!("=== 1: not announced");
        site.run("lb-1", "lbctl service add far --address 10.9.9.9 --port 80")?;
        let said = guide.step()?;
        assert!(said.contains("outside `announce.allow`"), "{said}");
        site.run("lb-1", "lbctl service remove far")?;

        println!("=== 2: down though its server runs");
        let listen = |from: &str, to: &str| {
            format!(
                "sed -i -e 's/listen {from};/listen {to};/' -e '/listen \\[::\\]/d' /etc/nginx/sites-available/default
                systemctl restart nginx"
            )
        };
        site.run(
            "web-2",
            &listen("80 default_server", "10.0.0.1:80 default_server"),
        )?;
        site.wait_said("lb-1", "lbctl backend list", "down", true)?;
        let said = guide.step()?;
        assert!(said.contains("refused"), "{said}");
        assert_eq!(guide.step()?.trim(), "000");
        let said = guide.step()?;
        assert!(said.contains("10.0.0.1:80"), "{said}");
        site.run(
            "web-2",
            &listen("10.0.0.1:80 default_server", "80 default_server"),
        )?;
        site.wait_said("lb-1", "lbctl backend list", "down", false)?;

        println!("=== 3: resets after a change");
        site.run("lb-1", "lbctl backend set web-1 --weight 50")?;
        let said = guide.step()?;
        assert!(said.contains("www"), "{said}");
        site.run("lb-1", "lbctl backend set web-1 --weight 100")?;

        println!("=== 4: drops");
        site.run(
            "lb-1",
            "lbctl service add empty --address 10.0.0.1 --port 99",
        )?;
        site.run(
            "lb-2",
            "lbctl service add empty --address 10.0.0.1 --port 99",
        )?;
        let requests = site.requests("--connect-timeout 1 http://10.0.0.1:99/")?;
        site.wait_said("lb-1", "lbctl stats", "drop_no_backend", true)?;
        guide.step()?;
        let said = guide.step()?;
        assert!(said.contains("drop_no_backend"), "{said}");
        drop(requests);
        for host in ["lb-1", "lb-2"] {
            site.run(host, "lbctl service remove empty")?;
        }

        println!("=== 5: attached how");
        let said = guide.step()?;
        assert!(said.contains("xdp"), "{said}");

        println!("=== 6: large ones hang");
        let said = guide.step()?;
        assert!(said.contains("1 received"), "{said}");

        println!("=== 7: nodes disagree");
        guide.step()?;
        site.copy("lb-1.json", "lb-1", "lb-2")?;
        site.run("lb-2", "lbctl backend set web-1 --weight 50")?;
        let compare = "lbctl digest --compare lb-1.json";
        let difference = site.run("lb-2", compare).err().context("no difference")?;
        let said = format!("{difference:#}");
        assert!(said.contains("web-1: weight differs"), "{said}");
        site.run("lb-2", "lbctl backend set web-1 --weight 100")?;
        site.run("lb-2", compare)?;

        println!("=== 8: lbd does not start");
        let config = "/etc/guideway/lbd.yaml";
        site.run(
            "lb-1",
            &format!("cp {config} {config}.good; echo 'bogus: 1' >> {config}; systemctl stop lbd"),
        )?;
        let said = guide.fails()?;
        assert!(said.contains("bogus"), "{said}");
        site.run(
            "client",
            "curl --silent --fail --max-time 5 http://10.0.0.1/",
        )?;
        site.run(
            "lb-1",
            &format!("mv {config}.good {config}; systemctl start lbd"),
        )?;
        site.wait_lbd("lb-1")?;

        println!("=== 9: the flow table");
        let said = guide.step()?;
        assert!(said.contains("evicted"), "{said}");

        println!("=== 10: one node has it all");
        let said = guide.step()?;
        let is_there = |node: &&str| said.contains(*node);
        assert!(
            ["10.2.0.2", "10.2.0.3", "= 1"].iter().all(is_there),
            "{said}"
        );

        println!("=== 11: the state is refused");
        let damage = "systemctl stop lbd
            for file in /var/lib/guideway/state*; do if [ -f $file ]; then echo damaged > $file; fi; done
            ls -l /var/lib/guideway
            systemctl start lbd";
        println!("{}", site.run("lb-1", damage)?);
        site.wait_lbd("lb-1")?;
        let said = guide.step()?;
        assert!(said.contains("damaged"), "{said}");
        site.run(
            "client",
            "curl --silent --fail --max-time 5 http://10.0.0.1/",
        )?;
        let said = guide.step()?;
        assert!(!said.contains("damaged"), "{said}");
        site.run(
            "client",
            "curl --silent --fail --max-time 5 http://10.0.0.1/",
        )?;
        guide.finish()
    })
}
