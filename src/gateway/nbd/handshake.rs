//! The server's side of the negotiation, as a pure state machine.
//!
//! Purpose: from a client's first byte to the transmission phase. Call [`Handshake::handle_bytes`] with what has
//! arrived until it gives [`Step::Transmission`] or [`Step::Close`]; send what it adds to `out` after each call, also
//! before closing.
//!
//! Invariants: consumes exactly the handshake's bytes, so what follows belongs to the transmission phase; at most
//! [`OPTIONS_MAX`] options of at most [`proto::OPTION_LEN_MAX`] bytes each.
//!
//! Non-goals: the time limit (the driver has it), TLS.

use bytes::{Buf, BytesMut};

use super::proto::{self, DecodeMessage, MetaContextRequest, opt, rep, trans};
use super::{Backend, Export, Exports};

/// Options that one client may send: real clients send under ten.
pub const OPTIONS_MAX: u32 = 256;

/// Why a negotiation was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiateExport {
    #[error(transparent)]
    Decode(#[from] DecodeMessage),
    #[error("no export named {0:?}")]
    UnknownExport(String),
    #[error("more than {OPTIONS_MAX} options")]
    TooManyOptions,
}

/// What to do next.
pub enum Step<B> {
    /// Read more bytes.
    NeedMore,
    /// The client chose an export; the transmission phase begins.
    Transmission(Negotiated<B>),
    /// The client ended the negotiation in good order.
    Close,
}

/// What was agreed.
pub struct Negotiated<B> {
    pub export: Export<B>,
    pub structured_replies: bool,
    /// `base:allocation` was selected for this export.
    pub block_status: bool,
}

/// One negotiation.
pub struct Handshake {
    client_flags: Option<u32>,
    structured_replies: bool,
    /// The export for which `base:allocation` was selected last.
    context_export: Option<String>,
    options: u32,
}

impl Handshake {
    /// Starts a negotiation; the greeting goes to `out`.
    pub fn new(out: &mut BytesMut) -> Self {
        proto::encode_greeting(out);
        Self { client_flags: None, structured_replies: false, context_export: None, options: 0 }
    }

    /// Takes what it can from `input` and adds its answers to `out`.
    pub fn handle_bytes<E: Exports>(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
        exports: &E,
    ) -> Result<Step<E::Backend>, NegotiateExport> {
        if self.client_flags.is_none() {
            match proto::decode_client_flags(input)? {
                None => return Ok(Step::NeedMore),
                Some(flags) => self.client_flags = Some(flags),
            }
            input.advance(4);
        }
        while let Some((option, data)) = proto::decode_option(input)? {
            self.options += 1;
            if self.options > OPTIONS_MAX {
                return Err(NegotiateExport::TooManyOptions);
            }
            let consumed = proto::OPTION_HEADER_LEN + data.len();
            let end = self.handle_option(option, data, out, exports)?;
            input.advance(consumed);
            if let Some(step) = end {
                return Ok(step);
            }
        }
        Ok(Step::NeedMore)
    }

    /// Answers one option; `Some` ends the negotiation.
    fn handle_option<E: Exports>(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut BytesMut,
        exports: &E,
    ) -> Result<Option<Step<E::Backend>>, NegotiateExport> {
        match option {
            opt::EXPORT_NAME => {
                let name = proto::decode_export_name(data)?;
                // This option can't be refused: the protocol ends the session instead.
                let export = exports.find(name).ok_or_else(|| NegotiateExport::UnknownExport(name.to_owned()))?;
                let no_zeroes = self.client_flags.is_some_and(|flags| flags & proto::FLAG_NO_ZEROES != 0);
                let flags = self.transmission_flags(&export);
                proto::encode_export_name_reply(out, export.backend.size_bytes(), flags, no_zeroes);
                return Ok(Some(Step::Transmission(self.negotiated(name, export))));
            }
            opt::GO | opt::INFO => return Ok(self.handle_info(option, data, out, exports)),
            opt::ABORT => {
                proto::encode_option_reply(out, option, rep::ACK, &[]);
                return Ok(Some(Step::Close));
            }
            opt::LIST if data.is_empty() => {
                for name in exports.names() {
                    proto::encode_list_entry(out, &name);
                }
                proto::encode_option_reply(out, option, rep::ACK, &[]);
            }
            opt::STRUCTURED_REPLY if data.is_empty() => {
                self.structured_replies = true;
                proto::encode_option_reply(out, option, rep::ACK, &[]);
            }
            opt::LIST | opt::STRUCTURED_REPLY => refuse(out, option, rep::ERR_INVALID, "this option takes no data"),
            opt::SET_META_CONTEXT | opt::LIST_META_CONTEXT => self.handle_meta_context(option, data, out, exports),
            opt::STARTTLS => refuse(out, option, rep::ERR_UNSUP, "TLS is not supported"),
            _ => refuse(out, option, rep::ERR_UNSUP, "unknown option"),
        }
        Ok(None)
    }

    fn handle_info<E: Exports>(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut BytesMut,
        exports: &E,
    ) -> Option<Step<E::Backend>> {
        let request = match proto::decode_info_request(data) {
            Ok(request) => request,
            Err(error) => {
                refuse(out, option, rep::ERR_INVALID, &error.to_string());
                return None;
            }
        };
        let Some(export) = exports.find(request.name) else {
            refuse(out, option, rep::ERR_UNKNOWN, &format!("no export named {:?}", request.name));
            return None;
        };
        proto::encode_info_export(out, option, export.backend.size_bytes(), self.transmission_flags(&export));
        if request.wants_name {
            proto::encode_info_name(out, option, &export.name);
        }
        if request.wants_block_size {
            proto::encode_info_block_size(out, option);
        }
        proto::encode_option_reply(out, option, rep::ACK, &[]);
        (option == opt::GO).then(|| Step::Transmission(self.negotiated(request.name, export)))
    }

    fn handle_meta_context<E: Exports>(&mut self, option: u32, data: &[u8], out: &mut BytesMut, exports: &E) {
        let setting = option == opt::SET_META_CONTEXT;
        if setting {
            // The new set replaces the old one even if the option fails.
            self.context_export = None;
        }
        let MetaContextRequest { name, queries } = match proto::decode_meta_context_request(data) {
            Ok(request) => request,
            Err(error) => return refuse(out, option, rep::ERR_INVALID, &error.to_string()),
        };
        if setting && !self.structured_replies {
            return refuse(out, option, rep::ERR_INVALID, "structured replies must be negotiated first");
        }
        if exports.find(name).is_none() {
            return refuse(out, option, rep::ERR_UNKNOWN, &format!("no export named {name:?}"));
        }
        let wanted = |query: &str| query == proto::CONTEXT_BASE_ALLOCATION || (!setting && query == "base:");
        if queries.iter().any(|query| wanted(query)) || (!setting && queries.is_empty()) {
            let id = if setting { proto::CONTEXT_ID } else { 0 };
            proto::encode_meta_context(out, option, id, proto::CONTEXT_BASE_ALLOCATION);
            if setting {
                self.context_export = Some(name.to_owned());
            }
        }
        proto::encode_option_reply(out, option, rep::ACK, &[]);
    }

    fn transmission_flags<B>(&self, export: &Export<B>) -> u16 {
        let mut flags =
            trans::HAS_FLAGS | trans::SEND_FLUSH | trans::SEND_FUA | trans::CAN_MULTI_CONN | trans::SEND_CACHE;
        if export.read_only {
            flags |= trans::READ_ONLY;
        } else {
            flags |= trans::SEND_TRIM | trans::SEND_WRITE_ZEROES | trans::SEND_FAST_ZERO;
        }
        if self.structured_replies {
            flags |= trans::SEND_DF;
        }
        flags
    }

    fn negotiated<B>(&self, name: &str, export: Export<B>) -> Negotiated<B> {
        Negotiated {
            export,
            structured_replies: self.structured_replies,
            block_status: self.context_export.as_deref() == Some(name),
        }
    }
}

/// Adds an error reply with a text for the user.
fn refuse(out: &mut BytesMut, option: u32, kind: u32, text: &str) {
    proto::encode_option_reply(out, option, kind, text.as_bytes());
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
