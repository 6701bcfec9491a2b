//! The lab's certificates and kubeconfigs: made anew for every lab, thrown away with it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::plan::Plan;

/// How long the lab's certificates are good for; a lab is not kept that long.
const LIFETIME: Duration = Duration::days(30);

/// The folder with the lab's keys and certificates.
#[derive(Debug, Clone)]
pub(crate) struct Pki {
    dir: PathBuf,
}

/// An authority that signs while the lab is being set up; its key is not kept.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes every key, certificate and kubeconfig of a lab.
    pub(crate) fn create(dir: &Path, plan: Plan, public: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let pki = Self {
            dir: dir.to_owned(),
        };
        let ca = pki.authority("ca", "ambit-lab")?;
        let front = pki.authority("front-proxy-ca", "ambit-lab-front-proxy")?;

        let mut api: Vec<SanType> = plan.api_service().map(SanType::IpAddress).into();
        api.extend(
            [plan.control_plane4().into(), plan.control_plane6().into()].map(SanType::IpAddress),
        );
        api.extend(
            [
                IpAddr::from([127, 0, 0, 1]),
                IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]),
            ]
            .map(SanType::IpAddress),
        );
        for name in [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ] {
            api.push(SanType::DnsName(name.try_into()?));
        }
        pki.leaf(&ca, "apiserver", "kube-apiserver", None, api)?;
        pki.leaf(
            &ca,
            "apiserver-kubelet-client",
            "kube-apiserver-kubelet-client",
            Some("system:masters"),
            vec![],
        )?;
        pki.leaf(
            &front,
            "front-proxy-client",
            "front-proxy-client",
            None,
            vec![],
        )?;

        let key = KeyPair::generate()?;
        pki.write("service-account.key", &key.serialize_pem())?;
        pki.write("service-account.pub", &key.public_key_pem())?;

        let inside = format!("https://{}:6443", plan.control_plane4());
        let local = "https://127.0.0.1:6443";
        pki.user(
            &ca,
            "admin",
            "ambit-lab-admin",
            Some("system:masters"),
            public,
        )?;
        pki.user(
            &ca,
            "controller-manager",
            "system:kube-controller-manager",
            None,
            local,
        )?;
        pki.user(&ca, "scheduler", "system:kube-scheduler", None, local)?;
        pki.user(&ca, "kube-proxy", "system:kube-proxy", None, &inside)?;
        for worker in plan.workers() {
            let name = &worker.name;
            pki.user(
                &ca,
                name,
                &format!("system:node:{name}"),
                Some("system:nodes"),
                &inside,
            )?;
            let sans = vec![
                SanType::DnsName(name.as_str().try_into()?),
                SanType::IpAddress(worker.ip4.into()),
                SanType::IpAddress(worker.ip6.into()),
            ];
            pki.leaf(&ca, &format!("{name}-serving"), name, None, sans)?;
        }
        Ok(pki)
    }

    /// The keys and certificates that were made before.
    pub(crate) fn open(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The path of one file, such as `ca.crt`.
    pub(crate) fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }

    fn authority(&self, file: &str, name: &str) -> anyhow::Result<Authority> {
        let mut params = dated(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        self.write(&format!("{file}.crt"), &params.self_signed(&key)?.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())?;
        Ok(Authority {
            issuer: Issuer::new(params, key),
        })
    }

    fn leaf(
        &self,
        ca: &Authority,
        file: &str,
        name: &str,
        group: Option<&str>,
        sans: Vec<SanType>,
    ) -> anyhow::Result<()> {
        let mut params = dated(name, group);
        params.subject_alt_names = sans;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        self.write(
            &format!("{file}.crt"),
            &params.signed_by(&key, &ca.issuer)?.pem(),
        )?;
        self.write(&format!("{file}.key"), &key.serialize_pem())
    }

    /// A client certificate and the kubeconfig that uses it, complete in itself.
    fn user(
        &self,
        ca: &Authority,
        file: &str,
        name: &str,
        group: Option<&str>,
        server: &str,
    ) -> anyhow::Result<()> {
        self.leaf(ca, file, name, group, vec![])?;
        let data = |file: &str| {
            fs::read(self.dir.join(file))
                .map(ByteString)
                .with_context(|| file.to_owned())
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "ambit-lab", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")?}}],
            "users": [{"name": file, "user": {
                "client-certificate-data": data(&format!("{file}.crt"))?,
                "client-key-data": data(&format!("{file}.key"))?,
            }}],
            "contexts": [{"name": "ambit-lab", "context": {"cluster": "ambit-lab", "user": file}}],
            "current-context": "ambit-lab",
        });
        self.write(
            &format!("{file}.kubeconfig"),
            &serde_json::to_string_pretty(&config)?,
        )
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.dir.join(file);
        let mut options = fs::OpenOptions::new();
        let mut open = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        open.as_mut()
            .map_err(|e| std::io::Error::new(e.kind(), e.to_string()))
            .and_then(|f| std::io::Write::write_all(f, text.as_bytes()))
            .with_context(|| format!("writing {}", path.display()))
    }
}

fn dated(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + LIFETIME;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
