//! Installs into directories of its own.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;

const LIST: &str = r#"{"name":"pods","cniVersion":"1.0.0","disableCheck":true,"plugins":[
  {"type":"bridge","mtu":1450,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/24"}]]}},
  {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
const SINGLE: &str = r#"{"cniVersion":"0.3.1","name":"solo","type":"bridge","mtu":1450}"#;

struct Node {
    dir: TempDir,
    installer: Installer,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("net.d")).unwrap();
        fs::write(at("program"), "v1").unwrap();
        let installer = Installer {
            program: at("program"),
            socket: at("cni.sock"),
            enrolled: at("namespaces.json"),
            ..Installer::new(at("net.d"), at("bin"))
        };
        Self { dir, installer }
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.installer.conf_dir.join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.conf(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.conf(name)).unwrap()).unwrap()
    }

    fn types(&self, name: &str) -> Vec<String> {
        let list = self.read(name);
        let plugins = list["plugins"].as_array().unwrap();
        plugins
            .iter()
            .map(|p| p["type"].as_str().unwrap().into())
            .collect()
    }

    fn ensure(&self) -> Installed {
        self.installer.ensure().unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for dir in [&self.installer.conf_dir, &self.installer.bin_dir] {
            for path in files::list(dir).unwrap() {
                names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
        names.sort();
        names
    }

    fn ready(&self, name: &str, changed: bool) -> Installed {
        let config = self.conf(name);
        Installed::Ready { config, changed }
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn joins_the_first_list_and_leaves_it_as_it_was() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    node.write("20-other.conflist", LIST);
    assert_eq!(node.ensure(), node.ready("10-pods.conflist", true));
    assert_eq!(
        node.types("10-pods.conflist"),
        ["bridge", "portmap", PLUGIN]
    );
    assert_eq!(node.types("20-other.conflist"), ["bridge", "portmap"]);
    let mut expected = json(LIST);
    let plugins = expected["plugins"].as_array_mut().unwrap();
    plugins.push(node.installer.entry());
    assert_eq!(node.read("10-pods.conflist"), expected);
    assert_eq!(
        fs::read(node.installer.bin_dir.join(PLUGIN)).unwrap(),
        b"v1"
    );

    assert_eq!(node.ensure(), node.ready("10-pods.conflist", false));
    fs::write(&node.installer.program, "v2").unwrap();
    assert_eq!(node.ensure(), node.ready("10-pods.conflist", true));
    assert_eq!(
        fs::read(node.installer.bin_dir.join(PLUGIN)).unwrap(),
        b"v2"
    );

    fs::write(&node.installer.enrolled, "{}").unwrap();
    for _ in 0..2 {
        node.installer.uninstall().unwrap();
        assert_eq!(node.read("10-pods.conflist"), json(LIST));
        assert_eq!(node.files(), ["10-pods.conflist", "20-other.conflist"]);
        assert!(!node.installer.enrolled.exists());
    }
}

#[test]
fn stands_in_for_a_single_configuration() {
    let node = Node::new();
    node.write("10-solo.conf", SINGLE);
    let stand_in = "10-solo-ambit.conflist";
    assert_eq!(node.ensure(), node.ready(stand_in, true));
    assert_eq!(node.ensure(), node.ready(stand_in, false));
    let list = node.read(stand_in);
    assert_eq!(
        (&list["name"], &list["cniVersion"]),
        (&json!("solo"), &json!("0.3.1"))
    );
    assert_eq!(
        list["plugins"],
        json!([json(SINGLE), node.installer.entry()])
    );
    assert_eq!(node.files()[0], stand_in, "a runtime takes the first");

    // The network plugin changes its mind.
    node.write("10-solo.conf", &SINGLE.replace("1450", "9000"));
    assert_eq!(node.ensure(), node.ready(stand_in, true));
    assert_eq!(node.read(stand_in)["plugins"][0]["mtu"], 9000);
    node.write("05-pods.conflist", LIST);
    assert_eq!(node.ensure(), node.ready("05-pods.conflist", true));
    assert_eq!(node.files(), ["05-pods.conflist", "10-solo.conf", PLUGIN]);

    fs::remove_file(node.conf("05-pods.conflist")).unwrap();
    node.ensure();
    node.installer.uninstall().unwrap();
    assert_eq!(node.files(), ["10-solo.conf"]);
    fs::remove_file(node.conf("10-solo.conf")).unwrap();
}

#[test]
fn waits_for_a_configuration() {
    let node = Node::new();
    assert_eq!(node.ensure(), Installed::Waiting);
    node.write("10-solo.conf", SINGLE);
    node.ensure();
    fs::remove_file(node.conf("10-solo.conf")).unwrap();
    assert_eq!(node.ensure(), Installed::Waiting);
    assert_eq!(node.files(), [PLUGIN], "no stand-in for what is gone");
}

#[test]
fn recovers_from_every_half_state() {
    let node = Node::new();
    let mut list = json(LIST);
    let plugins = list["plugins"].as_array_mut().unwrap();
    // Of an older version, twice, and not last.
    plugins.insert(1, json!({"type": PLUGIN, "socket": "/old"}));
    plugins.insert(1, json!({"type": PLUGIN}));
    node.write("10-pods.conflist", &list.to_string());
    node.write(".10-pods.conflist.ambit-tmp", "{\"half");
    assert_eq!(node.ensure(), node.ready("10-pods.conflist", true));
    assert_eq!(
        node.types("10-pods.conflist"),
        ["bridge", "portmap", PLUGIN]
    );
    assert_eq!(node.files(), ["10-pods.conflist", PLUGIN]);

    fs::remove_file(node.installer.bin_dir.join(PLUGIN)).unwrap();
    assert_eq!(node.ensure(), node.ready("10-pods.conflist", true));
    assert_eq!(node.files(), ["10-pods.conflist", PLUGIN]);
}

#[test]
fn a_plugin_that_wants_to_be_last_is_left_to_be() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    node.ensure();
    let mut list = node.read("10-pods.conflist");
    let plugins = list["plugins"].as_array_mut().unwrap();
    plugins.push(json!({"type": "other"}));
    node.write("10-pods.conflist", &list.to_string());
    assert_eq!(node.ensure(), node.ready("10-pods.conflist", false));
    node.installer.uninstall().unwrap();
    assert_eq!(
        node.types("10-pods.conflist"),
        ["bridge", "portmap", "other"]
    );
}

#[test]
fn what_is_no_configuration_is_refused_and_left_alone() {
    for (name, content) in [
        ("10-pods.conflist", "{\"plugins\": ["),
        ("10-pods.conflist", "[]"),
        ("10-pods.conflist", "{\"name\": \"x\"}"),
        ("10-pods.conflist", "{\"plugins\": []}"),
        ("10-solo.conf", "{\"name\": \"x\"}"),
    ] {
        let node = Node::new();
        node.write(name, content);
        let error = node.installer.ensure().unwrap_err();
        assert!(matches!(error, InstallError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        node.installer.uninstall().unwrap();
        assert_eq!(fs::read_to_string(node.conf(name)).unwrap(), content);
    }
}

#[test]
fn a_reader_always_sees_a_whole_configuration() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = [0; 2];
            while !done.load(Ordering::Relaxed) {
                match node.types("10-pods.conflist").len() {
                    2 => seen[0] += 1,
                    3 => seen[1] += 1,
                    n => panic!("{n} plugins"),
                }
            }
            seen
        });
        for _ in 0..50 {
            node.ensure();
            node.installer.uninstall().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(node.read("10-pods.conflist"), json(LIST));
}

/// Whether the node is told of a plugin that is not there.
fn is_broken(node: &Node) -> bool {
    let named = files::list(&node.installer.conf_dir).unwrap();
    let named = named.iter().filter(|path| list::is_config(path));
    let named = named.map(|path| fs::read_to_string(path).unwrap());
    let named = named.filter(|text| text.contains(&format!("{PLUGIN:?}")));
    named.count() > 0 && !node.installer.bin_dir.join(PLUGIN).exists()
}

#[test]
fn whatever_ends_when_no_entry_is_without_its_program() {
    let nodes: [&dyn Fn(&Node); 3] = [
        &|node| node.write("10-pods.conflist", LIST),
        &|node| node.write("10-solo.conf", SINGLE),
        // Which was the first until a single one came.
        &|node| {
            node.write("10-pods.conflist", LIST);
            node.ensure();
            node.write("05-solo.conf", SINGLE);
        },
    ];
    for prepare in nodes {
        let mut cut = [0, 0];
        for steps in 0.. {
            let node = Node::new();
            prepare(&node);
            let ensured = files::stopping::after(steps, || node.installer.ensure());
            assert!(!is_broken(&node), "stopped after {steps} steps of ensure");
            cut[0] += usize::from(ensured.is_err());
            node.ensure();
            let removed = files::stopping::after(steps, || node.installer.uninstall());
            assert!(
                !is_broken(&node),
                "stopped after {steps} steps of uninstall"
            );
            cut[1] += usize::from(removed.is_err());
            // Whoever comes next, to stay or to go, finds its way.
            node.ensure();
            assert!(matches!(
                node.ensure(),
                Installed::Ready { changed: false, .. }
            ));
            node.installer.uninstall().unwrap();
            assert!(!node.files().iter().any(|name| name.contains("ambit")));
            if ensured.is_ok() && removed.is_ok() {
                break;
            }
        }
        assert!(cut.iter().all(|cut| *cut >= 2), "{cut:?}");
    }
}

#[test]
fn what_was_under_way_when_the_plugin_is_removed_does_not_bring_it_back() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    // An installer that takes as long as we like to read its program.
    fs::remove_file(&node.installer.program).unwrap();
    nix::unistd::mkfifo(&node.installer.program, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let installer = node.installer.clone();
    let keeping = runtime.spawn(async move { installer.keep(|_| {}).await });
    // Can be opened once it is read.
    let mut program = fs::OpenOptions::new();
    let mut program = program.write(true).open(&node.installer.program).unwrap();
    keeping.abort();
    assert!(runtime.block_on(keeping).unwrap_err().is_cancelled());

    let installer = node.installer.clone();
    let (done, ended) = std::sync::mpsc::channel();
    let removing = std::thread::spawn(move || {
        let removed = installer.uninstall();
        let _ = done.send(());
        removed
    });
    // One that does not wait is done long before.
    let _ = ended.recv_timeout(Duration::from_millis(200));
    std::io::Write::write_all(&mut program, b"v1").unwrap();
    drop(program);
    removing.join().unwrap().unwrap();
    // Ends when all that it runs has.
    drop(runtime);
    assert_eq!(node.files(), ["10-pods.conflist"]);
    assert_eq!(node.read("10-pods.conflist"), json(LIST));
}

#[tokio::test]
async fn a_program_that_insists_on_its_own_configuration_makes_no_storm_and_is_named() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let installer = node.installer.clone();
    let (tx, mut news) = mpsc::unbounded_channel();
    let keeping = tokio::spawn(async move {
        let report = |outcome: Result<&Installed, &InstallError>| {
            let _ = tx.send(outcome.cloned().map_err(ToString::to_string));
        };
        installer.keep(report).await
    });
    let mut written = 0;
    let (times, pause) = loop {
        let next = tokio::time::timeout(Duration::from_secs(20), news.recv());
        match next.await.unwrap().unwrap().unwrap() {
            Installed::Ready { changed: false, .. } => continue,
            Installed::Ready { config, .. } => {
                written += 1;
                // At once, whenever we have written.
                node.write("fresh", LIST);
                fs::rename(node.conf("fresh"), config).unwrap();
            }
            Installed::Contested { times, pause, .. } => break (times, pause),
            Installed::Waiting => panic!("there is a configuration"),
        }
    };
    assert_eq!(times, written + 1);
    assert!(pause >= Duration::from_millis(500), "{pause:?}");
    keeping.abort();
}

#[tokio::test]
async fn comes_back_when_the_network_plugin_rewrites_its_file() {
    let node = Node::new();
    let installer = node.installer.clone();
    let (tx, mut news) = mpsc::unbounded_channel();
    let keeping = tokio::spawn(async move {
        let report = |outcome: Result<&Installed, &InstallError>| {
            let _ = tx.send(outcome.cloned().map_err(ToString::to_string));
        };
        installer.keep(report).await
    });
    let mut news = async || {
        let next = tokio::time::timeout(Duration::from_secs(10), news.recv());
        next.await.unwrap().unwrap()
    };
    assert_eq!(news().await, Ok(Installed::Waiting));
    node.write("10-pods.conflist", LIST);
    assert_eq!(news().await, Ok(node.ready("10-pods.conflist", true)));
    assert_eq!(news().await, Ok(node.ready("10-pods.conflist", false)));
    for _ in 0..3 {
        node.write("fresh", LIST);
        fs::rename(node.conf("fresh"), node.conf("10-pods.conflist")).unwrap();
        assert_eq!(news().await, Ok(node.ready("10-pods.conflist", true)));
        assert_eq!(
            node.types("10-pods.conflist"),
            ["bridge", "portmap", PLUGIN]
        );
        assert_eq!(news().await, Ok(node.ready("10-pods.conflist", false)));
    }
    fs::remove_file(node.installer.bin_dir.join(PLUGIN)).unwrap();
    assert_eq!(news().await, Ok(node.ready("10-pods.conflist", true)));
    assert!(node.installer.bin_dir.join(PLUGIN).exists());
    assert_eq!(news().await, Ok(node.ready("10-pods.conflist", false)));
    node.write("10-pods.conflist", "{");
    assert!(news().await.unwrap_err().contains("10-pods.conflist"));
    keeping.abort();
    assert!(node.dir.path().exists());
}
