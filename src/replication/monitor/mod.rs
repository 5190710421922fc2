//! What is checked beside the stream: the source's catalog and publication, and the target tables.

pub(super) mod catalog_diff;
pub(super) mod publication;
pub(super) mod source;
pub(super) mod target;
