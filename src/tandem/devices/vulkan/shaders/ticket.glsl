// Workgroups that make one result in parts count themselves when theirs is stored, and the last one to come finishes
// it within the same dispatch. No workgroup waits for another. Whoever includes this has `coherent` buffers: the parts,
// and `tickets`, counters that are zero before a dispatch and after it.

// What lies in front of the parts (workspace.py).
const uint TICKETS = 4096;

shared uint came;

// All lanes call it, once, when their parts are stored. True in the last of `count` workgroups, for which the others'
// parts are then there to read.
bool last_to_come(uint ticket, uint count) {
    memoryBarrierBuffer();
    barrier();
    if (gl_LocalInvocationID.x == 0) {
        memoryBarrierBuffer();
        came = atomicAdd(tickets[ticket], 1) + 1;
        if (came == count) tickets[ticket] = 0;
        memoryBarrierBuffer();
    }
    barrier();
    memoryBarrierBuffer();
    return came == count;
}
