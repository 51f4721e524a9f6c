// In which order the parts of a sum that SHARE lanes have are added up: those of a team one after another, then those of
// the teams. Lane l is of team l % TEAMS.
const uint TEAMS = SHARE < 64 ? 1 : 8;
