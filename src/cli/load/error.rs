//! Why the files can't be used.

/// The files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file can't be read.
    #[error("{file}: cannot read: {source}")]
    Read {
        /// The file, or standard input.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The documents are wrong; one line a problem.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// A generated schema isn't valid: a defect of walferry.
    #[error("the schemas of the resources are not valid")]
    Schema(#[source] serde_json::Error),
}
