//! The console: one page at `/` of a coordinator or a node, whole without JavaScript, live by server-sent events with it.
//!
//! A daemon gives a [`Source`] of facts; [`Hub`] renders them at most about once a second, for all viewers together and only
//! while there are any, and serves the page, the stream and the assets. The page asks nothing of any other host, and its
//! content security policy allows nothing but its own files.
//!
//! Everything from outside (names, events, addresses) goes through maud, which escapes it, or is checked to be a plain URL.
//!
//! Bounds: [`STREAMS_MAX`] streams; lists in the page are cut, and say so, so that a page over 1,000 nodes stays below
//! 200 KiB. Who may read is the daemon's business.

mod chart;
mod cluster;
mod facts;
mod hub;
mod node;
mod parts;

pub use cluster::render as render_cluster;
pub use facts::{
    ClusterFacts, CopyFacts, HISTORY_INTERVAL, History, NodeDisk, NodeFacts, NodeLink, Sample, VolumeLine, Volumes,
};
pub use hub::{Hub, STREAMS_MAX, Source};
pub use node::render as render_node;

/// A piece of the page that changes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The element's id.
    pub id: &'static str,
    /// What is in it.
    pub html: String,
}

/// A rendered page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The window's title.
    pub title: String,
    /// Its pieces, in the order of the page.
    pub sections: Vec<Section>,
}

#[cfg(test)]
mod tests;
