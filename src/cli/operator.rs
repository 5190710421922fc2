//! `walferry operator`: the Kubernetes controllers.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
};

use kube::Config;
use tokio_util::sync::CancellationToken;

use super::mirrors::stop_on_signal;
use crate::{
    api::{is_namespace, is_object_name},
    http,
    operator::{self, LeaseSettings, Metrics, ReplicatorSettings, Settings},
};

/// Manages Mirrors in a Kubernetes cluster: one replicator pod for each, its status, and its cleanup
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It finds its cluster by $KUBECONFIG, ~/.kube/config or the pod's service account.\n\n\
                  Example:\n  walferry operator --image ghcr.io/walferry/walferry:0.1.0 --namespace team-a --namespace team-b"
)]
pub struct Args {
    /// A namespace to watch; all of them when left out
    #[arg(
        long = "namespace",
        value_name = "NAMESPACE",
        env = "WALFERRY_NAMESPACES",
        value_delimiter = ',',
        value_parser = namespace
    )]
    namespaces: Vec<String>,
    /// The image of the replicators, with tag or digest: that of this release
    #[arg(long, value_name = "IMAGE", env = "WALFERRY_IMAGE", value_parser = image)]
    image: String,
    /// When nodes pull it [default: Kubernetes' own choice]
    #[arg(
        long,
        value_name = "POLICY",
        env = "WALFERRY_IMAGE_PULL_POLICY",
        value_parser = ["Always", "IfNotPresent", "Never"]
    )]
    image_pull_policy: Option<String>,
    /// A Secret to pull it with, which each Mirror's namespace must have
    #[arg(
        long = "image-pull-secret",
        value_name = "SECRET",
        env = "WALFERRY_IMAGE_PULL_SECRETS",
        value_delimiter = ',',
        value_parser = name
    )]
    image_pull_secrets: Vec<String>,
    /// Where to serve /healthz, /readyz and /metrics; port 0 is a free one, which is logged
    #[arg(long, value_name = "ADDR", env = "WALFERRY_HTTP", default_value = "[::]:9465")]
    http: SocketAddr,
    /// Whether to elect a leader among several operators by a Lease
    #[arg(
        long,
        value_name = "BOOL",
        env = "WALFERRY_LEADER_ELECTION",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    leader_election: bool,
    /// The Lease's name
    #[arg(long, value_name = "NAME", env = "WALFERRY_LEASE_NAME", default_value = "walferry-operator", value_parser = name)]
    lease_name: String,
    /// The Lease's namespace [default: $POD_NAMESPACE, else that of the kubeconfig]
    #[arg(long, value_name = "NAMESPACE", env = "WALFERRY_LEASE_NAMESPACE", value_parser = namespace)]
    lease_namespace: Option<String>,
    /// Name of this process in the Lease and in events [default: $POD_NAME, else generated]
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: Option<String>,
}

/// Refused here because the API server would answer a wrong namespace with an empty list.
fn namespace(text: &str) -> Result<String, String> {
    if is_namespace(text) {
        return Ok(text.to_owned());
    }
    Err("a namespace has 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends"
        .to_owned())
}

fn name(text: &str) -> Result<String, String> {
    if is_object_name(text) {
        return Ok(text.to_owned());
    }
    Err("a name has 1 to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part"
        .to_owned())
}

/// What an image reference is in full, the nodes know.
fn image(text: &str) -> Result<String, String> {
    if !text.is_empty() && !text.contains(char::is_whitespace) {
        return Ok(text.to_owned());
    }
    Err("an image is a reference without spaces, such as registry.example/walferry:0.1.0".to_owned())
}

/// Why the operator can't start.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Signals(String),
    #[error("no cluster is configured: {0}. Set KUBECONFIG, or run in a pod with a service account")]
    Config(#[from] kube::config::InferConfigError),
    #[error(
        "no namespace can have the name {0:?}: set --lease-namespace, or correct $POD_NAMESPACE or the kubeconfig's context"
    )]
    LeaseNamespace(String),
    #[error("cannot use the cluster's configuration: {0}")]
    Client(#[from] kube::Error),
    #[error("can't listen on {address}: {source}. Choose another address with --http")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot make metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("the http server ended: {0}")]
    Http(std::io::Error),
}

/// Runs until SIGTERM or SIGINT, finishes its current work and releases its Lease.
///
/// Exit code 0 when it ended in order, 1 when it can't start or its HTTP server failed.
pub async fn execute(args: Args) -> ExitCode {
    match operate(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::output::eprint(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn operate(args: Args) -> Result<(), Error> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop).map_err(Error::Signals)?;
    let config = Config::infer().await?;
    let settings = settings(&args, &config)?;
    let client = operator::connect(config)?;
    let listener =
        http::listen(args.http).await.map_err(|source| Error::Listen { address: args.http, source })?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving http");
    }
    let metrics = Arc::new(Metrics::new()?);
    let shown = Arc::clone(&metrics);
    // The server outlives the controllers: a pod that drains is still alive.
    let served = CancellationToken::new();
    let mut server = tokio::spawn(http::serve_metrics(listener, move || shown.render(), served.clone()));
    tokio::select! {
        () = operator::run(client, settings, metrics, stop) => {
            served.cancel();
            // What is still being answered ends with the process.
            Ok(())
        }
        ended = &mut server => match ended {
            Ok(result) => result.map_err(Error::Http),
            Err(error) => Err(Error::Http(std::io::Error::other(error))),
        },
    }
}

fn settings(args: &Args, config: &Config) -> Result<Settings, Error> {
    // Two processes of the same identity would both believe to hold the Lease.
    let made_up = || format!("walferry-{:016x}", RandomState::new().build_hasher().finish());
    let identity = args.identity.clone().unwrap_or_else(made_up);
    let namespace = args
        .lease_namespace
        .clone()
        .or_else(|| std::env::var("POD_NAMESPACE").ok())
        .unwrap_or_else(|| config.default_namespace.clone());
    if args.leader_election && !is_namespace(&namespace) {
        return Err(Error::LeaseNamespace(namespace));
    }
    let lease = args.leader_election.then(|| LeaseSettings {
        namespace,
        name: args.lease_name.clone(),
        identity: identity.clone(),
    });
    Ok(Settings {
        namespaces: args.namespaces.iter().cloned().collect(),
        replicators: ReplicatorSettings {
            image: args.image.clone(),
            image_pull_policy: args.image_pull_policy.clone(),
            image_pull_secrets: args.image_pull_secrets.clone(),
        },
        identity,
        lease,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    /// What the parser says to `walferry operator --image x` with these arguments behind it.
    fn refusal(arguments: &[&str]) -> Option<String> {
        let arguments = ["walferry", "operator", "--image", "x"].iter().chain(arguments);
        Cli::try_parse_from(arguments).err().map(|error| error.to_string())
    }

    #[test]
    fn names_that_no_cluster_can_have_are_refused_by_the_parser() {
        let accepted =
            ["--namespace=shop,team-a", "--lease-name=a.b", "--image-pull-secret=registry.example"];
        assert_eq!(refusal(&accepted), None);
        for (argument, message) in [
            ("--namespace=Shop", "'Shop' for '--namespace <NAMESPACE>': a namespace has"),
            ("--namespace=shop,,crm", "'' for '--namespace <NAMESPACE>': a namespace has"),
            ("--namespace=shop.crm", "a namespace has 1 to 63"),
            ("--lease-namespace=-", "a namespace has"),
            ("--lease-name=my_lease", "'my_lease' for '--lease-name <NAME>': a name has"),
            ("--image-pull-secret=Registry", "a name has"),
            ("--log-level=loud", "'loud' for '--log-level <LEVEL>': loud is not a level"),
        ] {
            let refusal = refusal(&[argument]).unwrap_or_default();
            assert!(refusal.contains(message), "{argument}: {refusal}");
        }
        let spaced = Cli::try_parse_from(["walferry", "operator", "--image", "a b"]).unwrap_err().to_string();
        assert!(spaced.contains("without spaces"), "{spaced}");
    }
}
