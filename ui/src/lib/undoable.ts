// Which earlier text of the configuration an undo brings back.

export interface Version {
  id: string;
  time: string;
  size: number;
  why: string;
  address?: string;
  agent?: string;
  restored_from?: string | null;
  in_force: boolean;
}

/** The version that undoing the last save brings back; null where the file was not last written by a save. */
export const undoable = (versions: Version[]): Version | null =>
  versions[0]?.in_force && versions[0].why === "saved" ? (versions[1] ?? null) : null;
