//! Many workers executing jobs in parallel, forked from one small helper process.
/// (being written)
pub struct Pool;
