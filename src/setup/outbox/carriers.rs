//! Relations that carry a row trigger: the highest partitioned table that rules reach, whose partitions get clones of it, and every other
//! table that holds rows.

use std::collections::{BTreeSet, HashMap};

use super::need::Need;
use super::triggers::CHANGE;
use crate::rules::Rules;
use crate::rules::tables::TableName;
use crate::setup::catalog::Catalog;

/// A relation with a trigger of its own.
#[derive(Clone, Debug)]
pub struct Carrier {
    /// Its number.
    pub oid: u32,
    /// Its name.
    pub table: TableName,
    /// It is partitioned.
    pub root: bool,
    /// Tables of the rules whose changes it carries.
    pub tables: BTreeSet<TableName>,
    /// Tables that can be emptied: itself, and the partitions.
    pub emptied: Vec<(u32, TableName)>,
}

/// The carriers that the rules' tables need. `ancestors` has every relation's partitioned ancestors.
pub fn carriers(catalog: &Catalog, ancestors: &HashMap<u32, Vec<u32>>) -> Vec<Carrier> {
    let mut carriers: Vec<Carrier> = Vec::new();
    let above = |oid: u32| ancestors.get(&oid).map(Vec::as_slice).unwrap_or_default();
    let mut roots: Vec<_> = catalog.sorted().into_iter().filter(|(_, table)| table.kind == 'p').collect();
    roots.sort_by_key(|(_, table)| above(table.oid).len());
    for (name, table) in roots {
        let known = carriers.iter_mut().find(|carrier| above(table.oid).contains(&carrier.oid));
        if let Some(carrier) = known {
            carrier.tables.insert(name.clone());
            continue;
        }
        let leaves = table.members.iter().map(|member| (member.oid, member.table.clone()));
        let emptied = [(table.oid, name.clone())].into_iter().chain(leaves).collect();
        let tables = BTreeSet::from([name.clone()]);
        carriers.push(Carrier { oid: table.oid, table: name.clone(), root: true, tables, emptied });
    }
    for (name, table) in catalog.sorted().into_iter().filter(|(_, table)| table.kind == 'r') {
        for member in &table.members {
            let carries =
                |carrier: &&mut Carrier| carrier.oid == member.oid || above(member.oid).contains(&carrier.oid);
            if let Some(carrier) = carriers.iter_mut().find(carries) {
                carrier.tables.insert(name.clone());
                continue;
            }
            let (tables, emptied) = (BTreeSet::from([name.clone()]), vec![(member.oid, member.table.clone())]);
            carriers.push(Carrier { oid: member.oid, table: member.table.clone(), root: false, tables, emptied });
        }
    }
    carriers
}

impl Carrier {
    /// The name of its row trigger. A partition gets that of its root beside its own, which is there before it is attached.
    pub fn trigger(&self) -> String {
        match self.root {
            true => format!("{CHANGE}_{}", self.oid),
            false => CHANGE.to_owned(),
        }
    }

    /// What it has to write down.
    pub fn need(&self, rules: &Rules, catalog: &Catalog) -> Need {
        let columns = self.columns(catalog);
        Need::of(rules, &self.tables, columns, catalog.triggers.notify)
    }

    /// Its columns, as far as the catalog knows them: a child has those of its parent.
    pub fn columns<'a>(&self, catalog: &'a Catalog) -> &'a [crate::setup::catalog::Column] {
        let known = std::iter::once(&self.table).chain(&self.tables).find_map(|name| catalog.tables.get(name));
        known.map(|table| table.columns.as_slice()).unwrap_or_default()
    }
}
