//! A label changes nothing else: the same Services, in a namespace without the label and in one with it, lead to the same
//! endpoints as kube-proxy's. Where a transparent proxy cannot answer as the kernel does, the table says so.

mod services {
    pub(crate) mod cases;
    pub(crate) mod scene;
}

use anyhow::{Result, ensure};
use e2e::apps::Namespace;

use services::cases::{CASES, Case};
use services::scene::Scene;

const MODE: &str = "istio.io/dataplane-mode";

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn services_mean_with_the_label_what_they_mean_without() -> Result<()> {
    let (_, client) = e2e::mesh::installed().await?;
    let plain = Namespace::within(&client, "without", &[], async |ns| table(ns, 0).await);
    let meshed = Namespace::within(&client, "with", &[(MODE, "ambient")], async |ns| {
        table(ns, 1).await
    });
    let (plain, meshed) = tokio::try_join!(Box::pin(plain), Box::pin(meshed))?;
    let mut wrong = Vec::new();
    println!(
        "{:<52} {:<28} {:<28}",
        "case", "without the label", "with it"
    );
    for ((case, without), with) in CASES.iter().zip(plain).zip(meshed) {
        let Case {
            name,
            without: expected,
            with: in_mesh,
            ..
        } = case;
        println!("{name:<52} {without:<28} {with:<28}");
        if without != *expected {
            wrong.push(format!(
                "{name}, without the label: {without}, not {expected}"
            ));
        }
        if with != in_mesh.unwrap_or(expected) {
            wrong.push(format!(
                "{name}, with it: {with}, not {}",
                in_mesh.unwrap_or(expected)
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What each case comes to in one namespace.
async fn table(ns: &Namespace, number: u16) -> Result<Vec<String>> {
    let scene = Scene::set(ns, number).await?;
    let mut answers = Vec::new();
    for case in CASES {
        answers.push(scene.ask(case).await?);
    }
    Ok(answers)
}
