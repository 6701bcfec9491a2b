use mesh::{
    names::Uid,
    proto::workload as wds,
    world::{World, WorldWriter, world},
    xds::{ADDRESS_TYPE, Update},
};
use prometheus_client::encoding::text::encode;
use prost::Message;

use super::*;

fn job(name: &str) -> wds::Workload {
    wds::Workload {
        uid: Uid::pod("Kubernetes", "ns", name).to_string(),
        name: name.into(),
        namespace: "ns".into(),
        workload_name: name.into(),
        service_account: "default".into(),
        ..wds::Workload::default()
    }
}

struct Mesh {
    writer: WorldWriter,
    world: World,
    metrics: Metrics,
    registry: Registry,
}

impl Mesh {
    fn new() -> Self {
        let (writer, world) = world();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        Self {
            writer,
            world,
            metrics,
            registry,
        }
    }

    fn tell(&mut self, updated: &[&str], removed: &[&str]) {
        let resource = |name: &&str| {
            let r#type = Some(wds::address::Type::Workload(job(name)));
            let bytes = wds::Address { r#type }.encode_to_vec();
            (job(name).uid, bytes.into())
        };
        let update = Update {
            type_url: ADDRESS_TYPE,
            updated: updated.iter().map(resource).collect(),
            removed: removed.iter().map(|name| job(name).uid).collect(),
        };
        self.writer.apply(&update).unwrap();
    }

    /// A connection from a pod to something that the mesh does not know.
    fn connection(&self, from: &str) -> OpenConnection {
        let uid = Uid::pod("Kubernetes", "ns", from);
        let source = self
            .world
            .look(|world| Party::of(world.workload(&uid).unwrap()));
        let nobody = Party::default();
        let flag = ResponseFlag::None;
        let labels = TcpLabels::new(Reporter::source, &source, &nobody, None, false, flag);
        self.metrics.opened(&labels)
    }

    fn retire(&self) -> usize {
        self.metrics.retire(&self.world.snapshot())
    }

    fn page(&self) -> String {
        let mut page = String::new();
        encode(&mut page, &self.registry).unwrap();
        page
    }
}

#[test]
fn a_series_is_told_once_however_many_connections_it_has() {
    let mut mesh = Mesh::new();
    mesh.tell(&["a", "b"], &[]);
    for from in ["a", "a", "b"] {
        mesh.connection(from).close(&Meter::new());
    }
    let page = mesh.page();
    for (name, from, value) in [("opened", "a", 2), ("opened", "b", 1), ("closed", "a", 2)] {
        let name = format!("istio_tcp_connections_{name}_total{{");
        let line = page.lines().find(|line| {
            line.starts_with(&name) && line.contains(&format!("source_workload=\"{from}\""))
        });
        assert!(line.unwrap().ends_with(&format!(" {value}")), "{line:?}");
    }
    assert!(
        page.contains("# TYPE istio_tcp_sent_bytes counter"),
        "{page}"
    );
    // None failed.
    assert!(
        !page.contains("istio_tcp_connections_failed_total{"),
        "{page}"
    );
}

/// B97: two thousand jobs, one after the other, leave two thousand series behind.
#[test]
fn the_series_of_workloads_that_are_no_more_go() {
    let mut mesh = Mesh::new();
    mesh.tell(&["stays"], &[]);
    mesh.connection("stays").close(&Meter::new());
    for number in 0..2000 {
        let name = format!("job-{number}");
        mesh.tell(&[&name], &[]);
        mesh.connection(&name).close(&Meter::new());
        mesh.tell(&[], &[&name]);
    }
    let metrics = mesh.retire();
    assert_eq!(metrics, 2001, "what they said last may not have been read");
    assert_eq!(mesh.retire(), 1);
    assert!(mesh.page().contains("source_workload=\"stays\""));
}

#[test]
fn a_series_lives_as_long_as_its_connections() {
    let mut mesh = Mesh::new();
    mesh.tell(&["gone"], &[]);
    let open = mesh.connection("gone");
    mesh.tell(&[], &["gone"]);
    for _ in 0..3 {
        assert_eq!(mesh.retire(), 1);
    }
    open.close(&Meter::new());
    assert_eq!(mesh.retire(), 1, "what it said last may not have been read");
    assert_eq!(mesh.retire(), 0);
}
