//! Forgejo: `X-Forgejo-Event` beside the headers of Gitea, Gogs and GitHub. Its own signature, where
//! there is one, decides: a good one of Gitea's does not make up for it.

use super::{Flaw, Forge, Proof, Request, gitea};

const SIGNATURE: &str = "x-forgejo-signature";

pub(super) const FORGE: Forge =
    Forge { event: "x-forgejo-event", ids: &["x-forgejo-delivery"], proof: prove, parse: gitea::parse };

fn prove<'a>(request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    let header = if request.headers.has(SIGNATURE) { SIGNATURE } else { gitea::SIGNATURE };
    gitea::prove(request, header)
}
