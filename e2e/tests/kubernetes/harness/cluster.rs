//! The cluster that the tests of this process share.

use std::{
    env,
    ffi::OsString,
    fmt,
    io::Write,
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::runtime::Runtime;

use crate::support::{Outcome, ScriptProcess, print_skipped};

/// A running cluster and its clients.
pub struct Cluster {
    pub client: Client,
    runtime: Runtime,
    kubeconfig: PathBuf,
    /// The folder of kubectl and helm; `None` for those on PATH.
    tools: Option<PathBuf>,
    /// Runs a cluster that was started for the tests; `None` for the one of `E2E_KUBECONFIG`.
    script_process: Option<Mutex<ScriptProcess>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

/// The cluster, which starts with the first use.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| match env::var_os("E2E_KUBECONFIG") {
        Some(kubeconfig) => Cluster::connect(kubeconfig.into(), None, None),
        None => Cluster::start(),
    })
}

impl Cluster {
    /// Starts a cluster.
    fn start() -> Cluster {
        let mut script_process = ScriptProcess::start("cluster", &[]);
        let answer = script_process.answer();
        let Some(folder) = answer.strip_prefix("ready ") else {
            panic!("the cluster did not start (answer '{answer}'); the reason is printed above")
        };
        let kubeconfig = Path::new(folder).join("admin.kubeconfig");
        Cluster::connect(kubeconfig, Some(tools_folder()), Some(Mutex::new(script_process)))
    }

    fn connect(
        kubeconfig: PathBuf,
        tools: Option<PathBuf>,
        script_process: Option<Mutex<ScriptProcess>>,
    ) -> Cluster {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let parsed = Kubeconfig::read_from(&kubeconfig)
            .unwrap_or_else(|error| panic!("{}: {error}", kubeconfig.display()));
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        Cluster { client, runtime, kubeconfig, tools, script_process }
    }

    /// Runs a future to its end. It must not be called within another future.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The answer to an idempotent request. It is sent again if the apiserver has just closed the kept
    /// connection.
    pub fn ask<T>(&self, request: impl AsyncFn() -> kube::Result<T>) -> kube::Result<T> {
        match self.block_on(request()) {
            Err(kube::Error::Service(_) | kube::Error::HyperError(_)) => self.block_on(request()),
            answer => answer,
        }
    }

    /// The address at which pods reach servers of this machine: its address in the nodes' network.
    pub fn address(&self) -> IpAddr {
        let nodes = self.block_on(Api::<Node>::all(self.client.clone()).list(&Default::default())).unwrap();
        let addresses = nodes.items.iter().flat_map(|node| node.status.iter().flat_map(|s| &s.addresses));
        let node = addresses.flatten().find(|address| address.type_ == "InternalIP").expect("a node");
        let node: IpAddr = node.address.parse().unwrap();
        let any = if node.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        // Connecting a UDP socket sends nothing; the kernel only chooses the route.
        socket.connect((node, 1)).unwrap();
        socket.local_addr().unwrap().ip()
    }

    /// The minor version of the apiserver: 34 is Kubernetes 1.34.
    pub fn minor_version(&self) -> u32 {
        let version = self.block_on(self.client.apiserver_version()).unwrap();
        version.minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }

    /// Whether the tests may kill programs of the cluster and drain its node. They may not in a cluster of
    /// `E2E_KUBECONFIG`, where other pods may run; then it prints that the test is skipped.
    pub fn can_be_disturbed(&self) -> bool {
        if self.script_process.is_none() {
            print_skipped("kills programs of the cluster, so it needs a cluster of its own");
        }
        self.script_process.is_some()
    }

    /// Kills a program of the cluster, such as `etcd`, runs `meanwhile`, and starts the program again, also
    /// after a panic.
    #[track_caller]
    pub fn without(&self, program: &str, meanwhile: impl FnOnce()) {
        let restart = Restart { cluster: self, program };
        self.order(&format!("{program} kill"));
        meanwhile();
        drop(restart);
    }

    /// Kills or starts a program of the cluster: "apiserver kill".
    #[track_caller]
    fn order(&self, order: &str) {
        let script_process =
            self.script_process.as_ref().expect("asked whether the cluster can be disturbed");
        let answer = script_process.lock().unwrap_or_else(PoisonError::into_inner).order(order);
        let done = ["started", "stopped"].contains(&&*answer);
        // A second panic would hide the failure of the test.
        assert!(done || thread::panicking(), "{order}: {answer}");
    }

    /// Runs kubectl with this standard input.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Outcome {
        self.run("kubectl", arguments, input)
    }

    /// Runs helm.
    #[track_caller]
    pub fn helm(&self, arguments: &[&str]) -> Outcome {
        self.run("helm", arguments, "")
    }

    /// Imports the images of an OCI archive into a cluster of `e2e/tools/cluster`.
    pub fn load(&self, archive: &str) {
        let folder = self.kubeconfig.parent().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tools/cluster");
        let status = Command::new(script).arg("load").arg(folder).arg(archive).status().unwrap();
        assert!(status.success(), "e2e/tools/cluster load failed; the reason is printed above");
    }

    fn run(&self, tool: &str, arguments: &[&str], input: &str) -> Outcome {
        let program: OsString = self.tools.as_ref().map_or(tool.into(), |folder| folder.join(tool).into());
        let mut child = Command::new(&program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        // The program may end before it has read its whole input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Starts a killed program again when it is dropped.
struct Restart<'a> {
    cluster: &'a Cluster,
    program: &'a str,
}

impl Drop for Restart<'_> {
    fn drop(&mut self) {
        self.cluster.order(&format!("{} start", self.program));
    }
}

/// The folder of `e2e/tools/cluster tools`.
fn tools_folder() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tools/cluster");
    let output = Command::new(script).arg("tools").stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "e2e/tools/cluster tools failed; the reason is printed above");
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}
