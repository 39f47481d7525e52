//! Schema versions: numbered steps that run once, in order, and are recorded in the store.

use prost::Message;

use super::records::{self, kind};
use super::{Batch, MetaError, MetaStore, envelope};

/// What is known of a step: its file in `migrations/`, and what it changes.
pub struct Step {
    /// Counts from 1 without gaps.
    pub number: u32,
    /// Short name.
    pub name: &'static str,
    /// The step's description, from `migrations/`.
    pub text: &'static str,
    /// Adds its changes to the batch.
    pub run: fn(&dyn MetaStore, &mut Batch) -> Result<(), MetaError>,
}

/// All steps.
pub const STEPS: &[Step] =
    &[Step { number: 1, name: "init", text: include_str!("../../migrations/0001_init.toml"), run: |_, _| Ok(()) }];

/// The record of steps that ran.
#[derive(Clone, PartialEq, Message)]
pub struct Schema {
    /// The last step.
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// Names of all steps, in order.
    #[prost(string, repeated, tag = "2")]
    pub names: Vec<String>,
}

/// Runs the steps that the store lacks and returns their names. Each is one commit. `dry` only tells.
///
/// # Errors
/// The store is newer than this binary, or fails.
pub fn migrate(store: &dyn MetaStore, dry: bool) -> Result<Vec<&'static str>, MetaError> {
    let stored = store.get(records::SCHEMA_KEY)?;
    let mut schema = Schema::default();
    if let Some(bytes) = &stored {
        let opened = envelope::open(records::SCHEMA_KEY, bytes)?;
        schema = envelope::decode(records::SCHEMA_KEY, &opened.body)?.0;
    }
    let known = STEPS.len() as u32;
    if schema.number > known {
        return Err(MetaError::SchemaTooNew { found: schema.number, known });
    }
    let todo = &STEPS[schema.number as usize..];
    let mut before = stored;
    for step in todo.iter().filter(|_| !dry) {
        let mut batch = Batch::default();
        (step.run)(store, &mut batch)?;
        schema.number = step.number;
        schema.names.push(step.name.to_owned());
        let sealed = envelope::seal(records::SCHEMA_KEY, kind::SCHEMA, 1, &schema);
        batch.expect.push((records::SCHEMA_KEY.to_owned(), before));
        batch.put(records::SCHEMA_KEY, sealed.clone());
        store.commit(&batch)?;
        before = Some(sealed);
    }
    Ok(todo.iter().map(|s| s.name).collect())
}
