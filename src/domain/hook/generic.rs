//! A sender that the config describes: where its proof, its event and its id come, and where the
//! body names ref, commit and repository.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::{
    Change, Flaw, Head, Headers, Kind, NotUnderstood, Proof, Repository, Request, Said, What, commit, full_ref,
    pick::pick, proof, standard,
};
use crate::domain::config::{Generic, Pointer, Shown};

pub(super) fn prove<'a>(generic: &Generic, request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    match &generic.proof {
        Shown::Bearer => proof::authorization(request).map(Proof::token),
        Shown::Standard => standard::prove(request),
        Shown::Hmac { header, prefix, hash, encoding } => {
            let mac = proof::mac(request, header, prefix, *hash, *encoding)?;
            Ok(Proof::hmac(*hash, request.body, mac))
        }
    }
}

/// The header with the sender's own id.
pub(super) fn id<'a>(generic: &Generic, headers: &'a Headers<'_>) -> Option<&'a str> {
    let standard = (generic.proof == Shown::Standard).then_some(standard::ID);
    headers.get(generic.id.as_deref().or(standard)?)
}

pub(super) fn parse(generic: &Generic, head: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    let places = [Some(&generic.ref_at), generic.commit_at.as_ref(), generic.repository_at.as_ref()];
    let parts: Vec<&[String]> = places.into_iter().flatten().map(Pointer::parts).collect();
    let mut found = pick(body, &parts)?.into_iter();
    let [ref_name, commit, repository] = places.map(|place| place.and_then(|_| found.next().flatten()));
    let id = head.sender_id.is_none().then(|| HEXLOWER.encode(&Sha256::digest(body)));
    Ok(Said { id, ..told(ref_name, &format!("`{}`", generic.ref_at), commit, repository)? })
}

/// What a body says that was picked apart. A name without `refs/` is a branch's.
pub(super) fn told(
    ref_name: Option<String>,
    place: &str,
    after: Option<String>,
    repository: Option<String>,
) -> Result<Said, NotUnderstood> {
    let repository = Repository::new(repository.clone(), [repository]);
    let Some(name) = ref_name else {
        return Ok(Said { repository, ..Said::of(Kind::Other { why: format!("it names no ref at {place}") }) });
    };
    let name = if name.starts_with("refs/") { name } else { format!("refs/heads/{name}") };
    let after = after.map(|id| commit(&id)).transpose()?;
    let change = Change {
        what: What::Push,
        ref_name: full_ref(&name)?,
        before: None,
        deleted: after == Some(None),
        after: after.flatten(),
        subject: None,
        author: None,
    };
    Ok(Said { repository, ..Said::of(Kind::Changes(vec![change])) })
}
