"""Files of other programs and our own: cubes, Quantum ESPRESSO, pseudopotentials, snapshots."""
