//! Pods enter and leave the mesh while they talk; ztunnel restarts; new pods wait for capture (needs root).

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::json;
use support::{
    fabric::{ECHO, Fabric, SERVICE, TestPod, exchange},
    log,
    net::{PATIENCE, connect},
    node::Outcome,
};
use ztunnel::{
    capture::{self, Own, Spec},
    cni::{enrolled::Enrolled, protocol::Answer},
};

/// Fresh connections all the time, from one pod to another.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(from: &TestPod, to: &TestPod) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, count) = (stop.clone(), done.clone());
        let (from, to) = (from.clone(), to.clone());
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = from.ask(to.addr(number % 2 == 1, ECHO)) {
                    failed.push(format!("request {number}: {error}"));
                }
            }
            failed
        });
        Self { stop, done, thread }
    }

    /// Waits until this many more requests are done.
    fn more(&self, requests: usize) {
        let until = self.done.load(Ordering::Relaxed) + requests;
        while self.done.load(Ordering::Relaxed) < until {
            assert!(!self.thread.is_finished());
            thread::yield_now();
        }
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.join().unwrap();
        let done = self.done.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "of {done}: {failed:#?}\n{}", log::dump());
        done
    }
}

#[test]
fn no_request_fails_while_pods_enter_and_leave_and_old_connections_live_on() {
    let fabric = Fabric::new();
    let (client, server) = (fabric.pod("ea", 0), fabric.pod("eb", 1));
    let load = Load::start(&client, &server);
    load.more(20);
    let mut before = connect(&client.ns, server.addr(false, ECHO)).unwrap();
    exchange(&mut before).unwrap();

    fabric.enrol(&server);
    load.more(20);
    fabric.enrol(&client);
    load.more(20);
    let mut between = connect(&client.ns, server.addr(false, ECHO)).unwrap();
    exchange(&mut between).unwrap();
    exchange(&mut before).unwrap();
    log::access("through a tunnel", |line| {
        line["direction"] == "inbound"
            && line["src.workload"] == "ea"
            && !line["dst.hbone_addr"].is_null()
    });

    fabric.take_out(&server);
    load.more(20);
    exchange(&mut between).unwrap();
    fabric.take_out(&client);
    load.more(20);
    // And both at once, as when a namespace's label changes.
    for pod in [&client, &server] {
        fabric.label(pod);
    }
    for pod in [&client, &server] {
        fabric.enrol(pod);
    }
    load.more(20);
    for pod in [&server, &client] {
        fabric.take_out(pod);
    }
    load.more(20);
    load.end();
    exchange(&mut before).unwrap();
    exchange(&mut between).unwrap();
    // The last captured connection ends, and with it the last trace.
    drop(between);
    for pod in [&client, &server] {
        until("nothing is left in the namespace", || {
            !pod.ns.run(|| capture::is_installed().unwrap()).unwrap()
        });
    }
}

#[test]
fn a_successor_takes_running_pods_over_and_leaving_for_good_cleans_up() {
    let fabric = Fabric::new();
    let (a, b) = (fabric.meshed("sa", 0), fabric.meshed("sb", 0));
    a.ask(b.addr(false, ECHO)).unwrap();
    let node = fabric.node(0);
    node.stop(false);
    // Redirection stays: nobody speaks in the clear because ztunnel is away.
    assert!(a.ns.run(|| capture::is_installed().unwrap()).unwrap());
    assert!(a.ask(b.addr(false, ECHO)).is_err());
    assert_eq!(node.given_back(), 0);
    node.start(&fabric.ca);
    node.wait_for(&a, Outcome::Enrolled);
    node.wait_for(&b, Outcome::Enrolled);
    a.ask(b.addr(false, ECHO)).unwrap();
    a.ask(b.vip(true, SERVICE)).unwrap();
    node.stop(true);
    for pod in [&a, &b] {
        assert!(!pod.ns.run(|| capture::is_installed().unwrap()).unwrap());
    }
    a.ask(b.addr(false, ECHO)).unwrap();
}

#[test]
fn an_upgrade_loses_no_request() {
    let fabric = Fabric::new();
    let (a, b) = (fabric.meshed("ua", 0), fabric.meshed("ub", 0));
    let load = Load::start(&a, &b);
    load.more(20);
    let node = fabric.node(0);
    for _ in 0..3 {
        let old = node.take();
        node.start(&fabric.ca);
        node.wait_for(&a, Outcome::Enrolled);
        node.wait_for(&b, Outcome::Enrolled);
        load.more(20);
        old.stop();
        load.more(20);
    }
    // Told to go before there is another: it waits for that one.
    thread::scope(|scope| {
        let old = node.take();
        let leaving = scope.spawn(|| old.leave(PATIENCE));
        load.more(20);
        assert!(!leaving.is_finished());
        node.start(&fabric.ca);
        leaving.join().unwrap();
        load.more(20);
    });
    load.end();
}

#[test]
fn only_the_controllers_word_gives_the_node_back_also_when_it_comes_late() {
    let fabric = Fabric::new();
    let (a, b) = (fabric.meshed("wa", 0), fabric.meshed("wb", 0));
    let node = fabric.node(0);
    let installed = |pod: &TestPod| pod.ns.run(|| capture::is_installed().unwrap()).unwrap();
    // Told to end; no successor, no word. Meanwhile the controller goes with everything it knows.
    thread::scope(|scope| {
        let old = node.take();
        let leaving = scope.spawn(|| old.leave(PATIENCE));
        node.connected(false);
        for pod in [&a, &b] {
            fabric.mention(pod, false);
        }
        a.ask(b.addr(false, ECHO)).unwrap();
        assert!(installed(&a) && installed(&b) && !leaving.is_finished());
        // Its stream is back, with the word.
        node.uninstalling(true);
        leaving.join().unwrap();
        assert!(!installed(&a) && !installed(&b));
    });
    a.ask(b.addr(false, ECHO)).unwrap();
}

#[test]
fn a_node_without_captured_pods_is_given_back_as_well_when_the_word_comes_late() {
    let fabric = Fabric::new();
    let (a, b) = (fabric.pod("ga", 0), fabric.pod("gb", 1));
    let node = fabric.node(0);
    node.connected(false);
    thread::scope(|scope| {
        let old = node.take();
        let leaves = old.is_leaving();
        let leaving = scope.spawn(|| old.leave(PATIENCE));
        until("it leaves", leaves);
        a.ask(b.addr(false, ECHO)).unwrap();
        assert!(!leaving.is_finished(), "the word may still come");
        node.connected(true);
        node.uninstalling(true);
        leaving.join().unwrap();
    });
    assert_eq!(node.given_back(), 1);
    node.uninstalling(false);

    // With a successor there is nothing to wait for.
    node.start(&fabric.ca);
    let old = node.take();
    node.connected(false);
    node.start(&fabric.ca);
    old.leave(Duration::from_secs(3600));
    assert_eq!(node.given_back(), 1);
}

#[test]
fn a_pod_that_comes_back_while_it_is_torn_down_stays_in_the_mesh() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    let (pod, client) = (fabric.meshed("ta", 0), fabric.meshed("tb", 1));
    let mut open = connect(&client.ns, pod.addr(false, ECHO)).unwrap();
    exchange(&mut open).unwrap();
    // Nobody mentions it, and no process is found: it is torn down, which the open connection holds up.
    fabric.mention(&pod, false);
    node.remove_process(&pod);
    until("it is torn down", || {
        node.metric("workload_manager_proxies_stopped") == 1
    });
    exchange(&mut open).unwrap();
    node.add_process(&pod, pod.number);
    fabric.mention(&pod, true);
    node.wait_for(&pod, Outcome::Enrolled);
    client.ask(pod.addr(false, ECHO)).unwrap();
    exchange(&mut open).unwrap();
    // What was torn down ends. What there is since stays as it is.
    drop(open);
    log::access("the connection of before", |line| {
        let bytes = [&line["bytes_sent"], &line["bytes_recv"]];
        line["direction"] == "inbound"
            && line["dst.workload"] == "ta"
            && bytes.contains(&&json!(15))
    });
    for v6 in [false, true] {
        client.ask(pod.addr(v6, ECHO)).unwrap();
    }
    fabric.take_out(&pod);
    assert!(!node.has_forgotten(&pod));
    assert_eq!(node.metric("ambit_redirection_repairs"), 0);
    // And when it is really no more, nothing is kept.
    fabric.mention(&pod, false);
    until("it is forgotten", || node.has_forgotten(&pod));
}

#[test]
fn a_pod_that_is_not_mentioned_any_more_stays_until_it_ends() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    let names = ["na", "nb", "nc"];
    let [silent, deleted, dead] = names.map(|name| fabric.meshed(name, 0));
    let client = fabric.meshed("nd", 1);
    let mut open = connect(&client.ns, silent.addr(false, ECHO)).unwrap();
    exchange(&mut open).unwrap();
    let installed = |pod: &TestPod| pod.ns.run(|| capture::is_installed().unwrap()).unwrap();
    let started = node.metric("workload_manager_proxies_started");
    assert_eq!(started, 3);
    for pod in [&silent, &deleted, &dead] {
        fabric.mention(pod, false);
    }
    // The container runtime, or the lack of any process, ends it at once.
    assert_eq!(node.cni_del(&deleted), Answer::Proceed);
    node.remove_process(&dead);
    for pod in [&deleted, &dead] {
        until("a pod that has ended is left", || !installed(pod));
    }
    // It lives, so it is as before: old connections and new ones, through tunnels.
    assert!(installed(&silent));
    exchange(&mut open).unwrap();
    client.ask(silent.addr(true, ECHO)).unwrap();
    // Mentioned again: as if nothing had been.
    fabric.mention(&silent, true);
    exchange(&mut open).unwrap();
    client.ask(silent.addr(false, ECHO)).unwrap();
    assert!(installed(&silent));
    assert_eq!(node.metric("workload_manager_proxies_started"), started);
    // And what the controller does ask for is done.
    fabric.take_out(&silent);
}

#[test]
fn a_pod_with_a_new_sandbox_is_captured_there() {
    let fabric = Fabric::new();
    let mut pod = fabric.pod("ra", 0);
    let client = fabric.pod("rb", 0);
    fabric.enrol(&pod);
    fabric.enrol(&client);
    client.ask(pod.addr(false, ECHO)).unwrap();
    let former = pod.ns.clone();
    assert_eq!(fabric.node(0).cni_del(&pod), Answer::Proceed);
    // Its network goes as soon as the runtime is answered: nothing may be served there any more.
    connect(&former, "127.0.0.1:15008".parse().unwrap()).unwrap_err();
    pod.ns = support::net::namespace();
    support::net::ip(&pod.ns, "link set lo up");
    support::net::ip(&pod.ns, &format!("addr add {} dev lo", pod.v4));
    assert_eq!(fabric.node(0).cni_add(&pod), Answer::Proceed);
    assert!(pod.ns.run(|| capture::is_installed().unwrap()).unwrap());
    connect(&pod.ns, "127.0.0.1:15008".parse().unwrap()).unwrap();
}

#[test]
fn damaged_redirection_is_put_back() {
    let fabric = Fabric::new();
    let pod = fabric.pod("da", 0);
    fabric.enrol(&pod);
    pod.ns.run(|| capture::remove().unwrap()).unwrap();
    let spec = Spec {
        ipv4: true,
        ipv6: true,
        bypass_inbound: false,
        own: Own::of(&[pod.v4, pod.v6]),
    };
    until("redirection is back", || {
        pod.ns
            .run(move || capture::verify(&spec).unwrap().is_empty())
            .unwrap()
    });
}

#[test]
fn one_pod_that_cannot_be_enrolled_says_why_and_harms_no_other() {
    let fabric = Fabric::new();
    let (bad, good) = (fabric.pod("fa", 0), fabric.pod("fb", 0));
    fabric.ca.refuse(&bad.identity());
    fabric.label(&bad);
    let report = fabric.node(0).wait_for(&bad, Outcome::Failed);
    assert_eq!(report.reason, "NoCertificate");
    assert!(
        report.message.contains("the test says no"),
        "{}",
        report.message
    );
    fabric.enrol(&good);
    // It is not captured, so it still talks as it did.
    bad.ask(good.addr(false, ECHO)).unwrap();
    fabric.ca.forgive();
    fabric.node(0).wait_for(&bad, Outcome::Enrolled);
}

#[test]
fn a_new_pod_starts_captured_or_waits() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    until("the list of namespaces is written", || {
        Enrolled::read(&node.namespaces_file()).is_ok_and(|f| f == Enrolled::from_iter(["shop"]))
    });
    let installed = |pod: &TestPod| pod.ns.run(|| capture::is_installed().unwrap()).unwrap();

    let known = fabric.start_pod("ca", 0);
    fabric.label(&known);
    fabric.announce(&known);
    assert_eq!(node.cni_add(&known), Answer::Proceed);
    assert!(installed(&known));
    node.wait_for(&known, Outcome::Enrolled);

    let left_alone = fabric.start_pod("cb", 0);
    fabric.announce(&left_alone);
    assert_eq!(node.cni_add(&left_alone), Answer::Proceed);
    assert!(!installed(&left_alone));

    node.connected(false);
    let unknown = fabric.start_pod("cc", 0);
    let Answer::Hold { reason } = node.cni_add(&unknown) else {
        panic!("not held")
    };
    assert!(
        reason.contains("shop/cc") && reason.contains("controller"),
        "{reason}"
    );
    assert!(!installed(&unknown));

    // Announced while the plugin waits.
    node.connected(true);
    fabric.label(&unknown);
    thread::scope(|scope| {
        let answer = scope.spawn(|| node.cni_add(&unknown));
        fabric.announce(&unknown);
        assert_eq!(answer.join().unwrap(), Answer::Proceed);
    });
    assert!(installed(&unknown));
}

/// Looks again until it is so, for a bounded time.
fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !so() {
        assert!(
            std::time::Instant::now() < deadline,
            "not so in time: {what}\n{}",
            log::dump()
        );
        thread::park_timeout(Duration::from_millis(20));
    }
}
